"""The child process of a campaign: builds a run, takes steps when asked, writes one receipt. Torch-free at import.

The parent's fork server has imported `lanewise.train.run` and run nothing, so a child starts in milliseconds and with
one thread. The protocol is described in `train/request.py`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import psutil
from pydantic import ValidationError

from lanewise.errors import ChildError, LanewiseError, RunFailed, UsageError
from lanewise.receipts.failures import DefectFailure, Failure
from lanewise.receipts.schema import Warmup
from lanewise.train.failure import failure_of, in_words
from lanewise.train.request import PairRequest, RunRequest

if TYPE_CHECKING:
    from lanewise.train.run import Run

EXIT_TERMINATED = 128 + signal.SIGTERM

EXIT_DEFECT = 70
"""Exit code of a failure that is lanewise's own fault."""


class Connection(Protocol):
    """One end of a `multiprocessing` pipe."""

    def send(self, message: Mapping[str, Any], /) -> None:
        """Send one message."""

    def recv(self) -> Any:
        """Wait for one message; `EOFError` when the other end is gone."""

    def poll(self, timeout: float | None = 0.0, /) -> bool:
        """Whether a message (or the end) can be received, waited for that long; None waits for it however long."""

    def close(self) -> None:
        """Close this end."""


Conversation = Callable[[str, Connection, float, Callable[[], float]], None]
"""Speaks one protocol to its end: request as JSON, pipe, start of the process, clock."""


class _Abort(Exception):  # an order from the parent, not an error
    """The parent wants no receipt, or is gone."""


def child_main(request_json: str, connection: Connection) -> None:
    """Entry point of a child process; never raises.

    Args:
        request_json: a `RunRequest` as JSON.
        connection: the child's end of the pipe.
    """
    _serve_process(request_json, connection, _run_one)


def pair_main(request_json: str, connection: Connection) -> None:
    """Entry point of a child that holds both arms of a screen; never raises.

    Args:
        request_json: a `PairRequest` as JSON.
        connection: the child's end of the pipe.
    """
    _serve_process(request_json, connection, run_both)


def _serve_process(request_json: str, connection: Connection, conversation: Conversation) -> None:
    start_seconds = time.perf_counter()
    # Ctrl-C reaches the whole process group; what becomes of this child is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    num_threads = psutil.Process().num_threads()
    serve(
        request_json,
        connection,
        num_threads=num_threads,
        start_seconds=start_seconds,
        conversation=conversation,
    )


def _leave(_signal_number: int, _frame: object) -> None:
    """End by SystemExit, so that compile workers and semaphores are cleaned up."""
    raise SystemExit(EXIT_TERMINATED)


def serve(
    request_json: str,
    connection: Connection,
    *,
    num_threads: int,
    start_seconds: float,
    now: Callable[[], float] = time.perf_counter,
    conversation: Conversation | None = None,
) -> None:
    """Speak the protocol to its end; every failure becomes a `failed` event with one line.

    Args:
        request_json: a `RunRequest` as JSON.
        connection: the child's end of the pipe.
        num_threads: threads this process had when it started; more than 1 is refused.
        start_seconds: reading of `now` when the child started.
        now: monotonic seconds.
        conversation: which protocol; None is that of a single run.
    """
    try:
        _refuse_threads(num_threads)
        (conversation or _run_one)(request_json, connection, start_seconds, now)
    except (_Abort, EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except ValidationError as error:
        _fail(connection, f"the request is not valid: {error.errors()[0]['msg']}", EXIT_DEFECT)
    except UsageError as error:
        _fail(connection, str(error), error.exit_code)  # refused before anything ran: no failure
    except LanewiseError as error:
        # A run that gave up raises a line for people from the error that stopped it.
        _fail(connection, str(error), error.exit_code, failure_of(error.__cause__ or error))
    except Exception as error:  # noqa: BLE001  # the process boundary: the parent gets one line instead of a traceback
        failure = failure_of(error)
        if isinstance(failure, DefectFailure):
            line = f"defect in lanewise: {type(error).__name__}: {error}"
            _fail(connection, line, EXIT_DEFECT, failure)
        else:
            _fail(connection, in_words(failure, error), RunFailed.exit_code, failure)
    finally:
        connection.close()


def _refuse_threads(num_threads: int) -> None:
    if num_threads != 1:
        raise ChildError(
            f"the child started with {num_threads} threads; a process forked after thread pools exist can "
            "deadlock, so the fork server must import and run nothing"
        )


def run_both(
    request_json: str, connection: Connection, start_seconds: float, now: Callable[[], float]
) -> None:
    """The conversation of a screen's child, which holds both arms."""
    from lanewise.train.toggle import run_pair

    run_pair(PairRequest.model_validate_json(request_json), connection, start_seconds, now)


def _run_one(
    request_json: str, connection: Connection, start_seconds: float, now: Callable[[], float]
) -> None:
    _run(RunRequest.model_validate_json(request_json), connection, start_seconds, now)


def _run(
    request: RunRequest, connection: Connection, start_seconds: float, now: Callable[[], float]
) -> None:
    from lanewise.train.compile_cache import private_cache
    from lanewise.train.process import pin, prepare_process
    from lanewise.train.run import Run

    host_allocator = prepare_process(request.num_threads)
    with private_cache(request.compile_cache_dir) as cache_digest:
        run = Run(request, host_allocator=host_allocator, cache_digest=cache_digest)
        if request.cores is not None:
            pin(request.cores)
        _take_steps(run, connection, lambda: now() - start_seconds)


def _take_steps(run: Run, connection: Connection, setup_seconds: Callable[[], float]) -> None:
    from lanewise.train.loop import manual_gc

    with manual_gc():
        connection.send(
            {
                "event": "ready",
                "pid": psutil.Process().pid,
                "setup_seconds": setup_seconds(),
            }
        )
        if run.request.steps is None:
            finish = _lockstep(run, connection)
        else:
            finish = _sequential(run, run.request.steps, connection)
    warmup = finish.get("warmup")
    finished = run.finish(
        warmup=None if warmup is None else Warmup.model_validate(warmup),
        host=finish.get("host"),
    )
    connection.send(
        {
            "event": "finished",
            "receipt_id": finished.receipt.receipt_id,
            "receipt_path": finished.location,
            "validity": finished.validity,
            "reasons": list(finished.reasons),
        }
    )


def _lockstep(run: Run, connection: Connection) -> Mapping[str, Any]:
    """Take steps when told to; returns the `finish` command."""
    while True:
        with run.goodput.span("turn_wait"):
            connection.poll(None)
            with run.log.protocol():
                message = next_command(connection)
        if message["command"] == "finish":
            return message
        results = [run.step() for _ in range(int(message["count"]))]
        with run.log.protocol():
            connection.send(
                {
                    "event": "stepped",
                    "duration_seconds": [result.duration_seconds for result in results],
                    "loss": [result.loss for result in results],
                    "tags": [list(result.tags) for result in results],
                    "device_bytes": run.device_bytes,
                }
            )


def _sequential(run: Run, steps: int, connection: Connection) -> Mapping[str, Any]:
    """Take all steps unless told to abort in between."""
    while run.next_step < steps:
        run.step()
        if connection.poll():
            command = next_command(connection)
            raise ChildError(
                f"the parent sent {command['command']!r} in mid-run; a run of fixed length takes only 'abort'"
            )
    return {}


def next_command(
    connection: Connection, *, known: Sequence[str] = ("step", "finish")
) -> Mapping[str, Any]:
    """Wait for the parent's next command; an order to abort ends the conversation.

    Raises:
        ChildError: the command is none of the known ones.
    """
    message: Any = connection.recv()
    name = message.get("command") if isinstance(message, dict) else None
    if name == "abort":
        raise _Abort
    if name not in known:
        raise ChildError(
            f"unknown command {message!r}; the child knows {', '.join(known)} and abort"
        )
    command: Mapping[str, Any] = message
    return command


def _fail(
    connection: Connection, error: str, exit_code: int, failure: Failure | None = None
) -> None:
    line = " ".join(error.split())
    facts = None if failure is None else failure.model_dump(mode="json")
    try:
        connection.send(
            {"event": "failed", "error": line, "exit_code": exit_code, "failure": facts}
        )
    except OSError:
        return  # the parent is gone, so nobody is left to tell
