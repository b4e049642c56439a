"""A sequential block (P1): four visits one after another, `ABBA` or `BAAB`, each process alone on the machine.

For lanes of which two copies do not fit in memory. Each visit takes as many steps as the quads of a lockstep block
give one arm. Drift slower than a block cancels to first order; what is faster stays in, so its noise is larger.
"""

from __future__ import annotations

from collections.abc import Callable

from lanewise.lab import protocol
from lanewise.lab.children import Launcher
from lanewise.lab.journal import BlockDone
from lanewise.lab.schedule import ArmName, quad_order
from lanewise.lab.visit import BlockTask, Visit, longest_warmup
from lanewise.lab.watch import BlockWatch
from lanewise.measure.host import Host
from lanewise.receipts.schema import Warmup


def run_sequential(
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
        on_progress: told the share of visits done.
        host: watched over the steps of each visit; None watches nothing.

    Raises:
        ChildError: a process died, hung or refused; no process is left behind and nothing counts.
    """
    started = clock()
    (order,) = quad_order(task.seed, 1)
    receipts: dict[str, tuple[str, ...]] = {"A": (), "B": ()}
    warmups: list[Warmup] = []
    for position, letter in enumerate(order):
        arm: ArmName = "A" if letter == "A" else "B"
        warmup, receipt_id = _run_visit(Visit(task, arm, position, launcher), task, host)
        warmups.append(warmup)
        receipts[arm] = (*receipts[arm], receipt_id)
        on_progress((position + 1) / len(order))
    warmup = longest_warmup(warmups)
    return BlockDone(
        feature=task.arms.feature,
        block=task.block,
        attempt=task.attempt,
        design="sequential",
        order=(order,),
        order_seed=task.seed,
        started_first="A" if order[0] == "A" else "B",
        lead_steps=protocol.LEAD_STEPS,
        warmup_steps=max(warmup.steps, protocol.LEAD_STEPS),
        steady=warmup.steady,
        warmup_reason=warmup.reason,
        receipts=receipts,
        wall_seconds=clock() - started,
    )


def _run_visit(visit: Visit, task: BlockTask, host: Host | None) -> tuple[Warmup, str]:
    try:
        visit.wait_ready()
        for _ in range(protocol.LEAD_STEPS):
            visit.step()
        watch = BlockWatch(host, task.cores, [visit.child.pid])
        for _ in range(protocol.STEPS_PER_QUAD * task.quads):
            visit.step()
        watch.close()
        warmup = visit.warmup(protocol.MIN_STEADY_QUADS * protocol.STEPS_PER_QUAD)
        # The others' warm-up is not known yet: this receipt states its own, the block drops the largest.
        visit.child.ask_to_finish(
            warmup=warmup,
            host=watch.message(visit.child.pid),
        )
        return warmup, visit.child.wait_finished(visit.finish_timeout_seconds()).receipt_id
    finally:
        visit.child.abort()
