"""Blocks with their verdict on validity, and the metrics of the arms over the blocks that count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from lanewise.lab.arms import Arms
from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.schedule import ArmName
from lanewise.lab.strata import disagreements
from lanewise.lab.validity import Fault, Gate, block_gates, faults_of, observed_backends
from lanewise.lane.features import BY_KEY
from lanewise.measure.loss_curve import LossComparison, LossPair
from lanewise.measure.quality import SeedRuns
from lanewise.receipts.decision import BlockRecord, CompileRuns, MetricDelta
from lanewise.receipts.failures import FailureFamily
from lanewise.receipts.profile import BackendVersions
from lanewise.receipts.schema import RunReceipt

OF_THE_VISIT = frozenset(
    {"device_init", "training_prep", "profiler", "turn_wait", "disruption", "other"}
)
"""Badput that a short visit has because it is short, or because the lab made it wait."""

CacheState = Literal["cold", "warm", "mixed", "unused"]

Reading = Callable[[RunReceipt], float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedBlock:
    """A block, the gates it passed, why it does not count if it does not, and its effect if it does."""

    evidence: BlockEvidence
    faults: tuple[Fault, ...]
    gates: tuple[Gate, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether the block counts."""
        return not self.faults

    @property
    def comparable(self) -> bool:
        """Whether both arms ran what was asked under the same conditions, be their step times steady or not."""
        return not any(fault.structural for fault in self.faults)

    @property
    def contrast_log(self) -> float | None:
        """Effect on log step time; None for a block that does not count."""
        return self.evidence.contrast_log() if self.valid else None

    def record(self) -> BlockRecord:
        """The block as a decision cites it."""
        entry = self.evidence.entry
        readable = not self.evidence.unreadable
        return BlockRecord(
            block=entry.block,
            design=entry.design,
            valid=self.valid,
            reasons=tuple(fault.text for fault in self.faults),
            contrast_log=self.contrast_log,
            num_quads=self.evidence.num_quads,
            warmup_steps=entry.warmup_steps,
            control_seconds=self.evidence.median_seconds("A") if readable else None,
            treated_seconds=self.evidence.median_seconds("B") if readable else None,
            receipts=entry.receipts,
            gates=tuple(gate.check() for gate in self.gates),
            failure_family=self.faults[0].family if self.faults else None,
            failure=self.faults[0].failure if self.faults else None,
        )


def judge(
    blocks: Sequence[BlockEvidence], arms: Arms, *, cache: Literal["warm", "cold"] | None = None
) -> tuple[JudgedBlock, ...]:
    """Apply every gate to every block, by itself and against the first one that is whole.

    Args:
        blocks: of one feature, in order.
        arms: what was asked for.
        cache: state of the compile caches that the campaign prepared; None where it did not say.
    """
    reference = next((block for block in blocks if not block.unreadable), None)
    judged = []
    for block in blocks:
        gates = block_gates(block, arms, reference=reference, cache=cache)
        judged.append(JudgedBlock(evidence=block, faults=faults_of(gates), gates=gates))
    return tuple(judged)


def machines_disagree(blocks: Sequence[JudgedBlock]) -> str | None:
    """Why the blocks that count, of several machines of the class, say nothing together; None where they may be pooled.

    Asked of a feature when it is decided. It never drops a block: whether one counts must not hang on its step times, nor on
    blocks that came after it, or a look could change after it was taken.
    """
    strata: dict[str, list[float]] = {}
    numbers: dict[str, list[int]] = {}
    for block in blocks:
        contrast = block.contrast_log
        if contrast is not None:
            strata.setdefault(_machine(block), []).append(contrast)
            numbers.setdefault(_machine(block), []).append(block.evidence.entry.block)
    return (
        "; ".join(
            f"block {', '.join(str(number) for number in numbers[machine])}: {found.text}"
            for machine, found in disagreements(strata).items()
        )
        or None
    )


def refused_family(blocks: Sequence[JudgedBlock]) -> FailureFamily | None:
    """Kind of the first fault of the blocks that makes a feature INVALID, else of the first that costs a block."""
    faults = [fault for block in blocks for fault in block.faults]
    faults.sort(key=lambda fault: not fault.structural)
    return faults[0].family if faults else None


def _machine(block: JudgedBlock) -> str:
    return block.evidence.receipts["A"][0].machine.instance_digest


def metric(
    blocks: Sequence[JudgedBlock], reading: Reading, *, reason: str, relative: bool = False
) -> MetricDelta:
    """A secondary metric: median over an arm's receipts that have it.

    Args:
        blocks: blocks that count.
        reading: the value of one receipt, or None.
        reason: why there may be none.
        relative: delta is treated ÷ control − 1 instead of treated − control.
    """
    control, treated = (_median_of(blocks, arm, reading) for arm in ("A", "B"))
    if control is None or treated is None:
        return MetricDelta(control=control, treated=treated, delta=None, reason=reason)
    if relative:
        delta = treated / control - 1.0 if control > 0 else None
        return MetricDelta(
            control=control,
            treated=treated,
            delta=delta,
            reason=None if delta is not None else "the control is zero",
        )
    return MetricDelta(control=control, treated=treated, delta=treated - control)


def allocated_bytes(receipt: RunReceipt) -> float | None:
    """Peak memory of tensors."""
    return receipt.memory.peak_allocated_bytes


def goodput_ratio(receipt: RunReceipt) -> float | None:
    """Share of step time in the time that steps and named losses of the feature's own making take.

    A visit of a campaign is seconds long, so its start-up and end would rule `receipt.goodput.goodput_ratio` and make
    every feature that shortens a step look wasteful. They are left out here; compile, autotune, graph capture, waiting
    for data and the like stay in.
    """
    goodput = receipt.goodput
    if goodput is None:
        return None
    lost = sum(
        seconds for name, seconds in goodput.badput_seconds.items() if name not in OF_THE_VISIT
    )
    total = goodput.step_seconds + lost
    return goodput.step_seconds / total if total > 0 else None


def compile_seconds(receipt: RunReceipt) -> float | None:
    """Time spent compiling."""
    return receipt.compile.compile_duration_seconds


def compile_runs(blocks: Sequence[JudgedBlock]) -> tuple[CompileRuns, ...]:
    """Spread of compile time per arm and cache state, over every run that compiled in a comparable block."""
    found: dict[tuple[ArmName, CacheState], list[float]] = {}
    for block in blocks:
        for arm, receipts in block.evidence.receipts.items():
            for record in (receipt.compile for receipt in receipts):
                if record.enabled and record.compile_duration_seconds is not None:
                    key = (arm, record.cache_state)
                    found.setdefault(key, []).append(record.compile_duration_seconds)
    return tuple(
        CompileRuns(
            arm=arm,
            cache_state=state,
            num_runs=len(seconds),
            median_seconds=median(seconds),
            low_seconds=min(seconds),
            high_seconds=max(seconds),
        )
        for (arm, state), seconds in sorted(found.items())
    )


def step_seconds(blocks: Sequence[JudgedBlock], arm: ArmName) -> float | None:
    """Median over blocks of an arm's median step, in seconds."""
    values = [block.evidence.median_seconds(arm) for block in blocks]
    known = [value for value in values if value is not None]
    return median(known) if known else None


def tokens_delta(
    blocks: Sequence[JudgedBlock], tokens_per_step: int, ratio: float | None
) -> MetricDelta:
    """Tokens per second of both arms; the delta follows the paired estimate, not the ratio of unpaired medians."""
    control, treated = step_seconds(blocks, "A"), step_seconds(blocks, "B")
    if control is None or treated is None or ratio is None:
        return MetricDelta(control=None, treated=None, delta=None, reason="no block counts")
    return MetricDelta(
        control=tokens_per_step / control,
        treated=tokens_per_step / treated,
        delta=1.0 / ratio - 1.0,
    )


def loss_difference(blocks: Sequence[JudgedBlock], compute: str) -> float | None:
    """Largest difference of the arms' losses over the first `PAIRED_LOSS_STEPS` of a dtype, in nats."""
    differences = [
        abs(treated - control)
        for block in blocks
        for _step, control, treated in block.evidence.paired_losses(compute)
        if control is not None and treated is not None
    ]
    return max(differences, default=None)


def seed_runs(blocks: Sequence[JudgedBlock]) -> tuple[SeedRuns, ...]:
    """Both arms of every block that counts, with the seed they shared; blocks before 1.2 all have the lane's own."""
    return tuple(
        SeedRuns(
            block=block.evidence.entry.block,
            seed=int(block.evidence.receipts["A"][0].lane.spec.get("seed", 0)),
            control=block.evidence.steps["A"][0],
            treated=block.evidence.steps["B"][0],
        )
        for block in blocks
        if all(block.evidence.steps[arm] for arm in ("A", "B"))
    )


def losses_at(
    blocks: Sequence[JudgedBlock], point: Callable[[LossComparison], LossPair]
) -> MetricDelta:
    """Loss of both arms at a point of their curves, in the block of the median delta (mean of the middle two).

    Blocks repeat one seed, so they differ by their length and step times alone: this is a reading, not an estimate. Medians
    of each arm by itself would mix blocks of different length, and their difference would not be the delta beside them.
    """
    pairs = [point(found) for block in blocks if (found := block.evidence.losses()) is not None]
    if not pairs:
        reason = "no block that counts has a finite loss in both arms"
        return MetricDelta(control=None, treated=None, delta=None, reason=reason)
    pairs.sort(key=lambda pair: pair.delta)
    middle = pairs[(len(pairs) - 1) // 2 : len(pairs) // 2 + 1]
    control = sum(pair.control for pair in middle) / len(middle)
    treated = sum(pair.treated for pair in middle) / len(middle)
    return MetricDelta(control=control, treated=treated, delta=treated - control)


def observed(blocks: Sequence[JudgedBlock], arms: Arms) -> tuple[str, ...]:
    """What ran in arm B, over all readable blocks."""
    return tuple(
        dict.fromkeys(
            name
            for block in blocks
            for receipt in block.evidence.receipts["B"]
            for name in observed_backends(receipt, arms)
        )
    )


def backend_versions(blocks: Sequence[JudgedBlock], arms: Arms) -> BackendVersions:
    """What the backends of both arms are built of, for the ops and switches under test."""
    switches = {
        switch
        for key in arms.declared
        for setting in BY_KEY[key].settings.values()
        for switch in setting.runtime
    }
    under_test = switches | set(arms.ops)
    return {
        name: version
        for block in blocks
        for receipts in block.evidence.receipts.values()
        for receipt in receipts
        for name, version in sorted((receipt.backend_versions or {}).items())
        if name.partition("=")[0] in under_test
    }


def _median_of(blocks: Sequence[JudgedBlock], arm: ArmName, reading: Reading) -> float | None:
    values = [reading(r) for block in blocks for r in block.evidence.receipts[arm]]
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None
