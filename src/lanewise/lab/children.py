"""Training processes as the lab sees them: start one, talk to it in turns, never leave one behind.

A child is started from a fork server that has imported torch once and run nothing, so each visit is its own process
at the price of a fork. The messages are those of `lanewise.train.request`. Tests replace `Launcher`.

What a waiting child costs the other one: GNU OpenMP workers spin after every parallel region (300,000 iterations by
default, milliseconds on a recent core), so the arm that has just finished its turn would steal a core from the first
operations of the arm whose turn it is. `receipts.environment.child_environment` therefore sets `OMP_WAIT_POLICY`
before the server starts, the only moment at which OpenMP reads it, and every receipt records it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import psutil
from pydantic import TypeAdapter

from lanewise.errors import ChildError
from lanewise.receipts.environment import child_environment, exported
from lanewise.receipts.failures import Failure, ProcessFailure, TimeoutFailure
from lanewise.receipts.schema import Warmup
from lanewise.train.entry import child_main, pair_main
from lanewise.train.request import PairRequest, RunRequest

PRELOAD = ("lanewise.train.run", "torch._dynamo")
"""Imported once by the fork server, which must not start a thread pool (every child checks). The second is a second of
imports that torch puts off until its compiler is first asked anything, which building any lane does."""

TERMINATE_SECONDS = 3.0
"""How long a child that was asked to end by SIGTERM may take before it is killed."""

EXIT_GRACE_SECONDS = 10.0
"""How long a child may take to leave after its last message before it is killed."""


_FAILURE: TypeAdapter[Failure | None] = TypeAdapter(Failure | None)


class Endpoint(Protocol):
    """One process and the pipe to it."""

    pid: int

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message; raises OSError when the process is gone."""

    def receive(self, timeout_seconds: float) -> Mapping[str, Any]:
        """Wait for one message; raises EOFError when the process is gone, TimeoutError when it stays silent."""

    def resident_bytes(self) -> int | None:
        """Memory the process holds now, or None when the system does not tell."""

    def close(self, grace_seconds: float) -> int | None:
        """Wait for the process to end, kill it after the grace, reap it; returns its exit code."""


class Launcher(Protocol):
    """Starts a process for one request."""

    def __call__(self, request: RunRequest | PairRequest) -> Endpoint:
        """Start it and return at once; a pair becomes one process that holds both arms."""


class VisitFailed(ChildError):
    """A visit ended before its receipt.

    Attributes:
        failure: the facts, told by the child or seen from here.
    """

    def __init__(self, message: str, failure: Failure | None) -> None:
        """Keep the facts beside the sentence."""
        super().__init__(message)
        self.failure = failure


class ChildRefused(VisitFailed):
    """A child said in its own words why it cannot go on.

    Attributes:
        reason: the child's message.
        child_exit_code: the code it would have exited with as a command (2 is the user's to fix).
    """

    def __init__(
        self, label: str, reason: str, child_exit_code: int, failure: Failure | None = None
    ) -> None:
        """Keep the child's message apart from the place it happened."""
        super().__init__(f"{label}: {reason}", failure)
        self.reason = reason
        self.child_exit_code = child_exit_code


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped:
    """Steps a child has taken. Durations in seconds, losses in nats per token, memory taken from its GPU."""

    duration_seconds: tuple[float, ...]
    loss: tuple[float, ...]
    tags: tuple[tuple[str, ...], ...]
    device_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The receipt a child has written."""

    receipt_id: str
    validity: str
    reasons: tuple[str, ...]


class Child:
    """One visit: speaks the protocol and turns every way it can break into a ChildError that names the visit."""

    def __init__(self, endpoint: Endpoint, *, label: str) -> None:
        """Wrap a started process; `label` names it in errors, e.g. `arm B`."""
        self.label = label
        self._endpoint = endpoint
        self._ended = False

    @property
    def pid(self) -> int:
        """Process id."""
        return self._endpoint.pid

    def wait_ready(self, timeout_seconds: float) -> float:
        """Wait until the child has built its lane; returns its setup time in seconds."""
        return float(self._expect("ready", timeout_seconds)["setup_seconds"])

    def step(self, count: int, timeout_seconds: float) -> Stepped:
        """Let the child take `count` optimizer steps and wait for it."""
        self._send({"command": "step", "count": count})
        return self._stepped(count, timeout_seconds)

    def _stepped(self, count: int, timeout_seconds: float) -> Stepped:
        message = self._expect("stepped", timeout_seconds)
        stepped = Stepped(
            duration_seconds=tuple(float(value) for value in message["duration_seconds"]),
            loss=tuple(float(value) for value in message["loss"]),
            tags=tuple(tuple(tags) for tags in message["tags"]),
            device_bytes=message.get("device_bytes"),
        )
        if len(stepped.duration_seconds) != count:
            raise ChildError(
                f"{self.label}: asked for {count} steps, the process reported "
                f"{len(stepped.duration_seconds)}; the visit is thrown away"
            )
        return stepped

    def ask_to_finish(
        self,
        *,
        warmup: Warmup | None,
        host: Mapping[str, Any] | None = None,
    ) -> None:
        """Tell the child to close its run and write its receipt; `wait_finished` collects it.

        `warmup` holds for both arms; None lets the child detect its own. `host` is what the lab saw of the host over the timed steps (`train.request`).
        """
        self._send(
            {
                "command": "finish",
                "warmup": None if warmup is None else warmup.model_dump(),
                "host": None if host is None else dict(host),
            }
        )

    def wait_finished(self, timeout_seconds: float) -> Finished:
        """Wait for the receipt, then for the process to leave."""
        message = self._expect("finished", timeout_seconds)
        self._ended = True
        self._endpoint.close(EXIT_GRACE_SECONDS)
        return Finished(
            receipt_id=str(message["receipt_id"]),
            validity=str(message["validity"]),
            reasons=tuple(str(reason) for reason in message["reasons"]),
        )

    def turns(self, order: str, timeout_seconds: float) -> Stepped:
        """Let a child that holds both arms take one step for each letter of `order` and wait for it."""
        self._send({"command": "turns", "order": order})
        return self._stepped(len(order), timeout_seconds)

    def wait_both_finished(self, timeout_seconds: float) -> dict[str, str]:
        """Wait for the receipts of both arms, then for the process to leave; arm → receipt id."""
        message = self._expect("finished", timeout_seconds)
        self._ended = True
        self._endpoint.close(EXIT_GRACE_SECONDS)
        return {str(arm): str(receipt_id) for arm, receipt_id in message["receipts"].items()}

    def resident_bytes(self) -> int | None:
        """Memory the process holds now."""
        return self._endpoint.resident_bytes()

    def abort(self, grace_seconds: float = EXIT_GRACE_SECONDS) -> None:
        """End the visit without a receipt; harmless when it has ended already."""
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(OSError):
            self._endpoint.send({"command": "abort"})
        self._endpoint.close(grace_seconds)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._endpoint.send(message)
        except OSError as error:
            raise self._died() from error

    def _expect(self, event: str, timeout_seconds: float) -> Mapping[str, Any]:
        try:
            message = self._endpoint.receive(timeout_seconds)
        except (EOFError, ConnectionError) as error:
            raise self._died() from error
        except TimeoutError as error:
            self._ended = True
            self._endpoint.close(0.0)
            raise VisitFailed(
                f"{self.label}: the process gave no answer for {timeout_seconds:.0f} s and was stopped",
                TimeoutFailure(waited_seconds=timeout_seconds),
            ) from error
        if message.get("event") == "failed":
            self._ended = True
            self._endpoint.close(EXIT_GRACE_SECONDS)
            raise ChildRefused(
                self.label,
                str(message["error"]),
                int(message["exit_code"]),
                _FAILURE.validate_python(message.get("failure")),
            )
        if message.get("event") != event:
            raise ChildError(
                f"{self.label}: expected {event!r}, the process answered {message.get('event')!r}"
            )
        return message

    def _died(self) -> ChildError:
        self._ended = True
        exit_code = self._endpoint.close(EXIT_GRACE_SECONDS)
        failure = ProcessFailure(exit_code=exit_code, signal=_signal_name(exit_code))
        return VisitFailed(f"{self.label}: {_ending(exit_code)}", failure)


class ForkServerLauncher:
    """Starts children from the fork server of `multiprocessing`.

    One per process of the lab: the server keeps the environment in which it was started.
    """

    def __init__(self, *, num_threads: int, also_preload: Sequence[str] = ()) -> None:
        """Start the server with the environment of a child.

        Args:
            num_threads: intra-op threads of every child.
            also_preload: modules that the program's main module imports, so that no child imports them again.
        """
        self._context = multiprocessing.get_context("forkserver")
        self._environment = child_environment(num_threads, starts_anew=True)
        self._context.set_forkserver_preload([*PRELOAD, *also_preload])

    def __call__(self, request: RunRequest | PairRequest) -> Endpoint:
        """Start a child for one request."""
        ours, theirs = self._context.Pipe()
        target = pair_main if isinstance(request, PairRequest) else child_main
        process = self._context.Process(target=target, args=(request.model_dump_json(), theirs))
        try:
            # The server is started by the first process and inherits what stands then; later calls change nothing.
            with exported(self._environment):
                process.start()
        except OSError as error:
            ours.close()
            raise ChildError(f"a training process could not be started: {error}") from error
        finally:
            theirs.close()
        return ProcessEndpoint(process, ours)


class ProcessEndpoint:
    """An `Endpoint` over a `multiprocessing` process."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        """Take over a started process and the lab's end of its pipe."""
        self._process = process
        self._connection = connection
        self.pid = process.pid or 0

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message."""
        self._connection.send(dict(message))

    def receive(self, timeout_seconds: float) -> Mapping[str, Any]:
        """Wait for one message."""
        if not self._connection.poll(timeout_seconds):
            raise TimeoutError
        message = self._connection.recv()
        if not isinstance(message, dict):
            raise ChildError(f"process {self.pid} answered {type(message).__name__}, not a message")
        return message

    def resident_bytes(self) -> int | None:
        """Resident set size of the process."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return None

    def close(self, grace_seconds: float) -> int | None:
        """Wait, kill if needed, reap."""
        self._process.join(grace_seconds)
        if self._process.is_alive():
            # A child that ends by SystemExit takes its compile workers and semaphores with it; a killed one cannot.
            self._process.terminate()
            self._process.join(TERMINATE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        exit_code = self._process.exitcode
        self._process.close()
        return exit_code


def _ending(exit_code: int | None) -> str:
    name = _signal_name(exit_code)
    if name is not None:
        hint = ", which is also how a system short of memory ends a process" * (name == "SIGKILL")
        return f"the process was killed by {name}{hint}"
    return f"the process ended with exit code {exit_code} in the middle of the visit"


def _signal_name(exit_code: int | None) -> str | None:
    """Name of the signal that ended a process; None when none did."""
    if exit_code is None or exit_code >= 0:
        return None
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
