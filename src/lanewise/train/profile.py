"""One profiled step after the timed ones: how much of it each op and each kind of block takes, and what they are built of.

Timed steps run none of this: ranges are put around launches and blocks for the one step and taken away again.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from lanewise.lane.resolved import ResolvedLane
from lanewise.measure.goodput import GoodputClock
from lanewise.measure.op_share import BLOCK, METHOD, OP, Shares, profiled, shares
from lanewise.models.layers import Block, BlockOutput, Context, RunBlock
from lanewise.models.model import HybridModel
from lanewise.ops.opset import OpSet
from lanewise.ops.versions import backend_version, compiler_version
from lanewise.receipts.profile import BackendVersions, LedgerMark, StepProfile, StepShare
from lanewise.train.loop import TrainingLoop
from lanewise.train.request import RunRequest

OPTIMIZER_OP = "optimizer_step"
"""Its launch builds an optimizer; the work is in `.step()`."""


def profile_run(
    request: RunRequest,
    loop: TrainingLoop,
    ops: OpSet,
    goodput: GoodputClock,
    *,
    aborted: str | None,
    missing: dict[str, str],
) -> StepProfile | None:
    """Profile one more step of a run that has ended, so that nothing measured has a profiler in it.

    Args:
        request: asks for it together with memory.
        loop: of the run.
        ops: the model's.
        goodput: accounts for the time.
        aborted: why not all steps were taken, or None.
        missing: takes the reason where there is no profile.
    """
    reason = aborted and "the run was aborted before its profiled step"
    if not request.resolved.lane.observability.measurements:
        reason = "observability.measurements is off"
    elif not request.measure_memory:
        reason = "no profiled step was asked for"
    if reason:
        missing["profile"] = reason
        return None
    with goodput.span("profiler"):
        profile = profile_step(
            loop.untimed_step,
            ops=ops,
            model=loop.model,
            optimizer=loop.optimizer,
            device_type=request.resolved.device_type,
        )
    if profile.device_busy_seconds is None:
        missing["profile.device_busy_seconds"] = "nothing was launched on a device"
    return profile


def profile_step(
    step: Callable[[], object],
    *,
    ops: OpSet,
    model: HybridModel,
    optimizer: torch.optim.Optimizer,
    device_type: str,
) -> StepProfile:
    """Take one step under the profiler.

    Args:
        step: one training step that nobody times.
        ops: the model's ops.
        model: its blocks are marked, whether they are compiled or not.
        optimizer: stepped by `step`.
        device_type: `cpu` or `cuda`.
    """
    calls: Counter[str] = Counter()
    with _marked(ops, model, optimizer, calls):
        events = profiled(step, device_type=device_type)
    return _profile(shares(events), calls)


def backend_versions(resolved: ResolvedLane, ops: OpSet) -> BackendVersions:
    """What every backend of a run is built of, and the compiler where blocks are compiled."""
    versions = {
        f"{op}={choice.chosen}": backend_version(op, choice.chosen)
        for op, choice in ops.choices.items()
    }
    for switch, on in resolved.runtime_switches.items():
        versions[f"{switch}={'on' if on else 'off'}"] = compiler_version()
    return versions


def ledger_marks(resolved: ResolvedLane) -> dict[str, LedgerMark] | None:
    """What the ledger had to say about the features of a run; None where it had nothing."""
    return {
        decision.key: LedgerMark(
            digest=decision.ledger_digest,
            evidence=decision.evidence,
            passed_over=decision.passed_over,
        )
        for decision in resolved.features
        if decision.evidence or decision.passed_over or decision.ledger_digest
    } or None


def _profile(found: Shares, calls: Mapping[str, int]) -> StepProfile:
    def share(prefix: str, seconds: Mapping[str, float]) -> dict[str, StepShare]:
        return {
            label: StepShare(
                share_ratio=value / found.step_seconds, launches=calls[f"{prefix}{label}"]
            )
            for label, value in seconds.items()
        }

    return StepProfile(
        method=METHOD,
        step_seconds=found.step_seconds,
        ops=share(OP, found.ops),
        blocks=share(BLOCK, found.blocks),
        device_busy_seconds=found.device_busy,
    )


@contextlib.contextmanager
def _marked(
    ops: OpSet, model: HybridModel, optimizer: torch.optim.Optimizer, calls: Counter[str]
) -> Iterator[None]:
    def in_range(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any) -> Any:
            calls[name] += 1
            with record_function(name):
                return function(*args)

        return marked

    with (
        ops.wrapped(lambda op, function: in_range(f"{OP}{op}", function)),
        _marked_blocks(model, in_range),
        _marked_steps(optimizer, f"{OP}{OPTIMIZER_OP}", calls),
    ):
        yield


@contextlib.contextmanager
def _marked_blocks(
    model: HybridModel, in_range: Callable[[str, RunBlock], RunBlock]
) -> Iterator[None]:
    depths = [] if model.mtp is None else list(dict.fromkeys(model.mtp.depths))
    kept, kept_depths = list(model.run_block), [depth.run_block for depth in depths]
    model.run_block = [
        _inside(run, in_range, f"{BLOCK}{letter}")
        for run, letter in zip(kept, model.letters, strict=True)
    ]
    for depth in depths:
        depth.run_block = _inside(depth.run_block, in_range, f"{BLOCK}mtp")
    try:
        yield
    finally:
        model.run_block = kept
        for depth, run in zip(depths, kept_depths, strict=True):
            depth.run_block = run


def _inside(run: RunBlock, in_range: Callable[[str, RunBlock], RunBlock], name: str) -> RunBlock:
    """The range goes around the block itself, so that a policy which calls it again in the backward pass is seen."""
    if isinstance(run, functools.partial):
        policy, (inner, *others) = run.func, run.args
        return functools.partial(policy, _inside(inner, in_range, name), *others, **run.keywords)
    marked = in_range(name, run)

    def call(block: Block, x: Tensor, context: Context) -> BlockOutput:
        return marked(block, x, context)

    return call


@contextlib.contextmanager
def _marked_steps(
    optimizer: torch.optim.Optimizer, name: str, calls: Counter[str]
) -> Iterator[None]:
    marks: list[record_function] = []

    def begin(*_: object) -> None:
        calls[name] += 1
        marks.append(record_function(name))
        marks[-1].__enter__()  # type: ignore[no-untyped-call]

    def end(*_: object) -> None:
        marks.pop().__exit__(None, None, None)

    handles = [optimizer.register_step_pre_hook(begin), optimizer.register_step_post_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
