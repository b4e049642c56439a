"""A lockstep block (P1b): both arms alive, one step at a time in turns, never two at once.

Drift slower than a few steps falls on both arms alike. After the lead steps the arms take turns in randomised
`ABBA` / `BAAB` quads; within a quad each arm stands as early as late, so a linear drift cancels in each quad.
"""

from __future__ import annotations

from collections.abc import Callable

from lanewise.lab import protocol
from lanewise.lab.children import Launcher
from lanewise.lab.journal import BlockDone
from lanewise.lab.schedule import ArmName, first_arm, quad_order
from lanewise.lab.visit import BlockTask, Visit
from lanewise.lab.watch import BlockWatch
from lanewise.measure.host import Host
from lanewise.measure.steady_pair import detect_pair_warmup


def run_lockstep(
    task: BlockTask,
    launcher: Launcher,
    clock: Callable[[], float],
    on_progress: Callable[[float], None],
    host: Host | None = None,
) -> BlockDone:
    """Run one block and return its journal entry; the children have written their receipts.

    Args:
        task: what to run.
        launcher: starts processes.
        clock: seconds, for what the block costs; durations come from the children.
        on_progress: told the share of quads done, between quads only.
        host: watched over the quads; None watches nothing.

    Raises:
        ChildError: a process died, hung or refused; no process is left behind and nothing counts.
    """
    started = clock()
    first = first_arm(task.seed)
    second: ArmName = "B" if first == "A" else "A"
    visits: dict[ArmName, Visit] = {}
    try:
        for position, arm in enumerate((first, second)):
            visits[arm] = Visit(task, arm, position, launcher)
        return _take_turns(task, visits, first, clock, started, on_progress, host)
    finally:
        for visit in visits.values():
            visit.child.abort()


def _take_turns(
    task: BlockTask,
    visits: dict[ArmName, Visit],
    first: ArmName,
    clock: Callable[[], float],
    started: float,
    on_progress: Callable[[float], None],
    host: Host | None,
) -> BlockDone:
    for visit in visits.values():
        visit.wait_ready()
    for _ in range(protocol.LEAD_STEPS):
        for visit in visits.values():
            visit.step()
    watch = BlockWatch(host, task.cores, [visit.child.pid for visit in visits.values()])
    order = quad_order(task.seed, task.quads)
    for done, quad in enumerate(order, start=1):
        for letter in quad:
            visits["A" if letter == "A" else "B"].step()
        on_progress(done / len(order))
    watch.close()
    warmup = detect_pair_warmup(
        visits["A"].durations,
        visits["B"].durations,
        tagged={*visits["A"].tagged, *visits["B"].tagged},
        lead_steps=protocol.LEAD_STEPS,
    )
    for visit in visits.values():
        visit.child.ask_to_finish(
            warmup=warmup,
            host=watch.message(visit.child.pid),
        )
    receipts = {
        arm: (visit.child.wait_finished(visit.finish_timeout_seconds()).receipt_id,)
        for arm, visit in visits.items()
    }
    return BlockDone(
        feature=task.arms.feature,
        block=task.block,
        attempt=task.attempt,
        design="lockstep",
        order=order,
        order_seed=task.seed,
        started_first=first,
        lead_steps=protocol.LEAD_STEPS,
        warmup_steps=warmup.steps,
        steady=warmup.steady,
        warmup_reason=warmup.reason,
        receipts=dict(sorted(receipts.items())),
        wall_seconds=clock() - started,
    )
