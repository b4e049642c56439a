"""Gates on the machine: compile caches, memory pressure, slowed clocks, and what else used the processors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lanewise.lab import protocol
from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.gates.gate import Fault, Gate, visits
from lanewise.receipts.failures import (
    AllocatorFailure,
    DisturbedFailure,
    FailureFamily,
    ThermalFailure,
)
from lanewise.receipts.schema import RunReceipt
from lanewise.receipts.telemetry import HostWindow

INVALIDATING_CLOCK_EVENTS = frozenset(
    {"hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "thermal_violation"}
)
"""The hardware protected itself: the steps are those of another machine. Reasons are read at both ends of the window, when the
card waits and is cool; `thermal_violation` is a counter that grew in between, so it sees what they miss. A software power
cap is how large cards always run under load, so it is recorded and nothing more."""


def compile_cache(block: BlockEvidence, planned: Literal["warm", "cold"] | None) -> Gate:
    """Compiled runs found their cache as planned, wholly filled or wholly empty, and both arms alike.

    Args:
        block: the block.
        planned: what the campaign prepared; None for campaigns that did not say.
    """
    states = {
        (arm, receipt.compile.cache_state)
        for arm, receipt in visits(block)
        if receipt.compile.enabled
    }
    faults = []
    for arm, state in sorted(states):
        if state == "mixed":
            faults.append(
                f"arm {arm}: the compile cache was mixed: some graphs were found and some built"
            )
        elif planned is not None and state in ("warm", "cold") and state != planned:
            faults.append(f"arm {arm}: the compile cache was {state}, {planned} was planned")
    found = {state for _arm, state in states if state in ("warm", "cold")}
    if not faults and len(found) > 1:
        faults.append("one compile cache was warm and another cold")
    listed = ", ".join(f"arm {arm} {state}" for arm, state in sorted(states))
    return Gate(
        name="compile_cache",
        rule=f"{planned or 'warm or cold'} in every compiled run, never mixed",
        received=listed or "nothing is compiled",
        faults=tuple(
            # The compiler did its work; what differs is the state that the runs met.
            Fault(text=text, family=FailureFamily.COMPARABILITY, structural=True)
            for text in faults
        ),
    )


def memory_pressure(block: BlockEvidence) -> Gate:
    """No allocation failed, and none had to be tried again after the allocator gave its cache back."""
    found = [(arm, receipt.memory) for arm, receipt in visits(block)]
    counted = any(m.ooms is not None or m.alloc_retries is not None for _arm, m in found)
    return Gate(
        name="memory_pressure",
        rule="no failed allocation and no retry during the steps",
        received="none" if counted else "the allocator counts neither",
        faults=tuple(
            Fault(
                text=f"arm {arm}: {memory.ooms or 0} allocations failed and {memory.alloc_retries or 0} were tried again",
                family=FailureFamily.ALLOCATOR,
                failure=AllocatorFailure(
                    alloc_retries=memory.alloc_retries,
                    peak_reserved_bytes=memory.peak_reserved_bytes,
                ),
                structural=True,
            )
            for arm, memory in found
            if memory.ooms or memory.alloc_retries
        ),
    )


def clock_events(block: BlockEvidence) -> Gate:
    """The hardware did not slow its own clocks down; a software power cap is recorded only."""
    seen = {(arm, name) for arm, r in visits(block) for name in r.telemetry.clock_event_reasons}
    bad = sorted((arm, name) for arm, name in seen if name in INVALIDATING_CLOCK_EVENTS)
    slowed = next(
        (
            ThermalFailure(
                clock_event_reasons=r.telemetry.clock_event_reasons,
                sm_clock_hertz=r.telemetry.sm_clock_hertz,
                temperature_celsius=r.telemetry.temperature_celsius,
            )
            for _arm, r in visits(block)
            if INVALIDATING_CLOCK_EVENTS.intersection(r.telemetry.clock_event_reasons)
        ),
        None,
    )
    unknown = next((w for _arm, r in visits(block) if (w := r.missing.get("telemetry"))), None)
    listed = ", ".join(sorted({name for _arm, name in seen}))
    return Gate(
        name="clock_events",
        rule="no hardware slowdown or power brake at either end of the steps, and no thermal limit in between; a software "
        "power cap is allowed",
        received=listed or unknown or "no event",
        faults=tuple(
            Fault(
                text=f"arm {arm}: the device slowed its clocks: {name}",
                family=FailureFamily.THERMAL,
                failure=slowed,
                structural=True,
            )
            for arm, name in bad
        ),
    )


def host_quiet(block: BlockEvidence) -> Gate:
    """Others left the processors to the block; the limits are the same for both arms, and no duration is looked at."""
    receipts = [receipt for _arm, receipt in visits(block)]
    taken = [None if r.host is None else contention_ratio(r.host, r) for r in receipts]
    stolen = [None if r.host is None else r.host.steal_ratio for r in receipts]
    faults = []
    for who, ratios, limit in (
        ("other programs", taken, protocol.FOREIGN_LOAD_LIMIT),
        ("the hypervisor", stolen, protocol.STEAL_LIMIT),
    ):
        largest = max((ratio for ratio in ratios if ratio is not None), default=0.0)
        if largest > limit:
            faults.append(
                f"disturbed: {who} took {largest:.0%} of the processors' time, allowed {limit:.0%}"
            )
    failure = DisturbedFailure(
        foreign_load_ratio=max((r for r in taken if r is not None), default=None),
        steal_ratio=max((r for r in stolen if r is not None), default=None),
    )
    return Gate(
        name="host_quiet",
        rule=f"others take at most {protocol.FOREIGN_LOAD_LIMIT:.0%} and the hypervisor {protocol.STEAL_LIMIT:.0%} of the "
        "time of the processors used",
        received=f"others {_most(taken)}, hypervisor {_most(stolen)}"
        if any(receipt.host is not None for receipt in receipts)
        else receipts[0].missing.get("host", "not recorded"),
        faults=tuple(
            Fault(
                text=text,
                family=FailureFamily.DISTURBED,
                failure=failure,
                structural=False,
                disturbed=True,
            )
            for text in faults
        ),
    )


def contention_ratio(host: HostWindow, receipt: RunReceipt) -> float | None:
    """Time that others took from the threads of a run ÷ the time those threads could have.

    Where a run may use more processors than it has threads, others disturb it only as far as they need more than the
    rest: on pinned processors there is no rest.
    """
    if host.foreign_load_ratio is None:
        return None
    num_cores = len(host.cores)
    threads = min(receipt.environment.num_threads or 1, num_cores)
    excess = host.foreign_load_ratio * num_cores - (num_cores - threads)
    return max(0.0, excess) / threads


def _most(ratios: Sequence[float | None]) -> str:
    """The largest of the visits' ratios, and of how many visits it is not known."""
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return "unknown"
    unknown = len(ratios) - len(known)
    return f"{max(known):.1%}" + (
        f" (unknown in {unknown} of {len(ratios)} visits)" if unknown else ""
    )
