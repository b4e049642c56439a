"""Where a campaign's processes run: both arms of a block on the same processors, the lab on the others.

An arm that wakes up for its turn on another core finds cold caches, and a lab that wakes up on the arm's core takes time
from it. Arms take turns, so they can share their processors without ever wanting them at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from lanewise.errors import UsageError
from lanewise.lane.machine import DeviceType
from lanewise.measure.host import Host


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Processors of the children and of the lab.

    Attributes:
        cores: of every training process; None leaves them where the system puts them.
        lab_cores: of the lab while processes run; None leaves it alone.
        reason: why processes are not pinned, or where they are.
    """

    cores: tuple[int, ...] | None
    lab_cores: tuple[int, ...] | None
    reason: str

    @property
    def pinned(self) -> bool:
        """Whether processes are kept to fixed processors."""
        return self.cores is not None


def place(
    host: Host | None, *, num_threads: int, device_type: DeviceType, wanted: bool
) -> Placement:
    """Choose processors, or say why none are chosen.

    The last processors are taken, because many systems serve interrupts on the first, and different physical cores
    before two threads of one.

    Args:
        host: the machine; None where it is not known.
        num_threads: threads of one training process.
        device_type: what the steps run on.
        wanted: False when the user asked for no pinning.
    """
    if not wanted:
        return _loose("--no-pin was given")
    if device_type != "cpu":
        return _loose("threads that feed a GPU need whichever core is free")
    usable = host.usable_cores() if host is not None else None
    if host is None or usable is None:
        return _loose("this system cannot keep a process to chosen processors")
    if num_threads > len(usable) - 1:
        return _loose(
            f"{num_threads} threads of {len(usable)} usable processors leave none for the lab"
        )
    chosen: list[int] = []
    taken: set[int] = set()
    for core in reversed(usable):
        if core not in taken:
            chosen.append(core)
            taken |= host.siblings(core)
    chosen += [core for core in reversed(usable) if core not in chosen]
    cores = tuple(sorted(chosen[:num_threads]))
    return Placement(
        cores=cores,
        lab_cores=tuple(core for core in usable if core not in cores),
        reason=f"processes run on {len(cores)} of {len(usable)} usable processors",
    )


def replace(
    host: Host | None, *, num_threads: int, device_type: DeviceType, pinned: bool
) -> Placement:
    """The placement of a campaign that is resumed: pinned as its first blocks were, or refused.

    Raises:
        UsageError: its blocks were pinned, and here processes cannot be.
    """
    placement = place(host, num_threads=num_threads, device_type=device_type, wanted=pinned)
    if pinned and not placement.pinned:
        raise UsageError(
            f"the campaign's blocks were pinned to processors, and here they cannot be: {placement.reason}; "
            "blocks measured differently never meet, so start a new campaign"
        )
    return placement


@contextlib.contextmanager
def aside(host: Host | None, placement: Placement) -> Iterator[None]:
    """Keep the lab off the children's processors until the block ends."""
    before = host.usable_cores() if host is not None else None
    if host is None or before is None or placement.lab_cores is None:
        yield
        return
    host.restrict(placement.lab_cores)
    try:
        yield
    finally:
        host.restrict(before)


def _loose(reason: str) -> Placement:
    return Placement(cores=None, lab_cores=None, reason=reason)
