"""Two runs in one process that take turns: what a screen does instead of starting a process for each arm.

Cheap, because one process is started and no step waits for a message, and biased, because the arms share an allocator, its
caches and the state of the processor. Interleaving in one process has turned a result round (0.83× to 1.75×,
pytorch/helion#2065), so nothing measured here may carry a verdict; receipts say `toggle`.

Each run keeps its own model, optimizer, loader, generator, launch counters and goodput clock, on which the other's turns are
`turn_wait`. Counters that belong to the process (its peak memory) are null in both receipts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from lanewise.errors import ChildError, UsageError
from lanewise.receipts.schema import Warmup
from lanewise.train.compile_cache import private_cache
from lanewise.train.entry import Connection, next_command
from lanewise.train.finished import Finished
from lanewise.train.loop import StepResult, manual_gc
from lanewise.train.process import pin, prepare_process
from lanewise.train.request import PairRequest, sharing_fault
from lanewise.train.run import Run

OTHER = {"A": "B", "B": "A"}


def run_pair(
    request: PairRequest, connection: Connection, start_seconds: float, now: Callable[[], float]
) -> None:
    """Build both runs, take turns as told, write both receipts.

    Raises:
        UsageError: the two arms cannot live in one process.
        ChildError: the parent sent what this child does not know.
    """
    fault = sharing_fault(request.control.resolved, request.treated.resolved)
    if fault is not None:
        raise UsageError(fault)
    allocator = prepare_process(request.control.num_threads)
    # One process has one compile cache: that of the arm which compiles, of which there is one at most.
    compiles = request.treated.resolved.runtime_switches.get("regional_compile", False)
    folder = (request.treated if compiles else request.control).compile_cache_dir
    with private_cache(folder) as digest:
        first = Run(request.control, host_allocator=allocator, cache_digest=digest)
        with first.goodput.span("turn_wait"):
            second = Run(request.treated, host_allocator=allocator, cache_digest=digest)
        if request.control.cores is not None:
            pin(request.control.cores)
        _train(first, second, connection, lambda: now() - start_seconds)


def _train(
    first: Run, second: Run, connection: Connection, setup_seconds: Callable[[], float]
) -> None:
    runs = {"A": first, "B": second}
    with manual_gc():
        connection.send(
            {"event": "ready", "pid": psutil.Process().pid, "setup_seconds": setup_seconds()}
        )
        finish = _take_turns(runs, connection)
    with second.goodput.span("turn_wait"):
        control = _finish(first, finish)
    treated = _finish(second, finish)
    connection.send(
        {
            "event": "finished",
            "receipts": {"A": control.receipt.receipt_id, "B": treated.receipt.receipt_id},
            "validity": {"A": control.validity, "B": treated.validity},
        }
    )


def _take_turns(runs: Mapping[str, Run], connection: Connection) -> Mapping[str, Any]:
    """Take turns when told to; returns the `finish` command."""
    while True:
        with contextlib.ExitStack() as waiting:
            for run in runs.values():
                waiting.enter_context(run.goodput.span("turn_wait"))
            message = next_command(connection, known=("turns", "finish"))
        if message["command"] == "finish":
            return message
        order = str(message["order"])
        if not order or set(order) - set(runs):
            raise ChildError(f"turns {order!r} are unknown; they are letters A and B")
        results = [_turn(runs, letter) for letter in order]
        connection.send(
            {
                "event": "stepped",
                "duration_seconds": [result.duration_seconds for result in results],
                "loss": [result.loss for result in results],
                "tags": [list(result.tags) for result in results],
            }
        )


def _turn(runs: Mapping[str, Run], letter: str) -> StepResult:
    with runs[OTHER[letter]].goodput.span("turn_wait"):
        return runs[letter].step()


def _finish(run: Run, command: Mapping[str, Any]) -> Finished:
    return run.finish(
        warmup=Warmup.model_validate(command["warmup"]),
        host=command.get("host"),
    )
