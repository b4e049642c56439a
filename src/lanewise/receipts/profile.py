"""Where the time of one step goes, by op and by block, the versions of the backends that took it, and the ledger's word."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lanewise.receipts.record import Digest, NonNegativeInt, Record, Seconds

BackendVersion = dict[str, str]
"""Distribution or source file → version: `{"torch": "2.13.0", "kernels/moe_experts_torch.py": "sha256:…"}`."""

BackendVersions = dict[str, BackendVersion]
"""`op=backend`, or `feature=state` where a feature sets no op → what it was built of."""


class StepShare(Record):
    """One op's or block family's part of a step, its backward pass included."""

    share_ratio: Annotated[float, Field(ge=0.0)]
    """Its seconds ÷ the seconds of the step, both under the profiler."""
    launches: NonNegativeInt
    """Calls in that step; those of a second computation in the backward pass count too."""


class StepProfile(Record):
    """One step after the timed ones, under the profiler, which slows small operations more than large ones."""

    method: str
    step_seconds: Seconds
    ops: dict[str, StepShare]
    """Op → share; ops inside compiled blocks cannot be told apart and are left out."""
    blocks: dict[str, StepShare]
    """Pattern letter, or `mtp` → share of all blocks of that kind."""
    device_busy_seconds: Seconds | None = None
    """Of that step, time in which the device ran a kernel or a copy; null on a CPU. Kernels take as long as without a
    profiler, the host's part does not: to be compared with the timed steps, not with this one."""


class LedgerMark(Record):
    """An entry of a ledger that decided a feature of this run, or did not count any more."""

    digest: Digest | None
    """Of the ledger's file; null for entries that come from no file."""
    evidence: tuple[str, ...] = ()
    """Decisions that the entry which decided rests on; empty where none did."""
    passed_over: str | None = None
    """Why an entry did not decide, e.g. `evidence expired: torch 2.13.0 → 2.14.0`."""
