"""A block of a screen: one fresh process holds both arms and takes their steps in turns.

The quads, lead steps and warm-up are those of a lockstep block; what is missing is a process of each arm's own, so what a
process adds to its step times (memory layout, caches, allocator) is shared and unknown. See `train/toggle.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from lanewise.lab import protocol
from lanewise.lab.children import Child, Launcher
from lanewise.lab.journal import BlockDone
from lanewise.lab.schedule import ArmName, quad_order
from lanewise.lab.visit import SETUP_TAGS, BlockTask, patience
from lanewise.lab.watch import BlockWatch
from lanewise.measure.host import Host
from lanewise.measure.steady_pair import detect_pair_warmup
from lanewise.train.request import PairRequest

ARMS: tuple[ArmName, ...] = ("A", "B")


def run_toggle(
    task: BlockTask,
    launcher: Launcher,
    clock: Callable[[], float],
    on_progress: Callable[[float], None],
    host: Host | None = None,
) -> BlockDone:
    """Run one block and return its journal entry; the child has written a receipt for each arm.

    Args:
        task: what to run.
        launcher: starts processes.
        clock: seconds, for what the block costs; durations come from the child.
        on_progress: told the share of quads done, between quads only.
        host: watched over the quads; None watches nothing.

    Raises:
        ChildError: the process died, hung or refused; it is not left behind and nothing counts.
    """
    started = clock()
    request = PairRequest(control=task.request("A", 0), treated=task.request("B", 1))
    child = Child(launcher(request), label="the process of both arms")
    costs = {arm: task.cost(arm) for arm in ARMS}
    durations: dict[str, list[float]] = {arm: [] for arm in ARMS}
    tagged: dict[str, list[int]] = {arm: [] for arm in ARMS}

    def turns(order: str) -> None:
        expected = sum(costs["A" if letter == "A" else "B"].step_seconds for letter in order)
        if not durations["A"]:
            expected += sum(cost.first_step_seconds for cost in costs.values())
        stepped = child.turns(order, patience(expected))
        for letter, seconds, tags in zip(
            order, stepped.duration_seconds, stepped.tags, strict=True
        ):
            if SETUP_TAGS & set(tags):
                tagged[letter].append(len(durations[letter]))
            durations[letter].append(seconds)

    try:
        child.wait_ready(patience(sum(cost.setup_seconds for cost in costs.values())))
        for _ in range(protocol.LEAD_STEPS):
            turns("AB")
        watch = BlockWatch(host, task.cores, [child.pid])
        order = quad_order(task.seed, task.quads)
        for done, quad in enumerate(order, start=1):
            turns(quad)
            on_progress(done / len(order))
        watch.close()
        warmup = detect_pair_warmup(
            durations["A"],
            durations["B"],
            tagged={*tagged["A"], *tagged["B"]},
            lead_steps=protocol.LEAD_STEPS,
        )
        child.ask_to_finish(
            warmup=warmup,
            host=watch.message(child.pid),
        )
        receipts = child.wait_both_finished(
            patience(10 * sum(cost.step_seconds for cost in costs.values()))
        )
    finally:
        child.abort()
    return BlockDone(
        feature=task.arms.feature,
        block=task.block,
        attempt=task.attempt,
        design="toggle",
        order=order,
        order_seed=task.seed,
        started_first="A",
        lead_steps=protocol.LEAD_STEPS,
        warmup_steps=warmup.steps,
        steady=warmup.steady,
        warmup_reason=warmup.reason,
        receipts={arm: (receipts[arm],) for arm in ARMS},
        wall_seconds=clock() - started,
    )
