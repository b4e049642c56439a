"""The host over the timed steps of a block, read by the lab while no arm is running: it costs the steps nothing.

Only the lab sees all processes of a lockstep block: to each arm, the other would look like a foreign program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lanewise.measure.host import SELF, Host, HostReading, host_window


class BlockWatch:
    """One window over some processes."""

    def __init__(
        self, host: Host | None, cores: tuple[int, ...] | None, process_ids: Sequence[int]
    ) -> None:
        """Read the first end now.

        Args:
            host: the machine; None where it is not known.
            cores: processors of the processes; None is every one they may use.
            process_ids: the training processes. The lab's own time is not foreign either where it may run on the same
                processors; kept off pinned ones it used none of their time, and subtracting it would hide others.
        """
        self._host = host
        self._pinned = cores is not None
        self._process_ids = (*process_ids, *(() if self._pinned else (SELF,)))
        self._cores = cores or (host.usable_cores() if host is not None else None) or ()
        self._start = self._read()
        self._end: HostReading | str = "the window was not closed"

    def close(self) -> None:
        """Read the other end."""
        self._end = self._read()

    def message(self, process_id: int) -> dict[str, Any]:
        """The window as the `finish` message of one process wants it."""
        found = host_window(self._start, self._end, own=process_id, pinned=self._pinned)
        return {"missing": found} if isinstance(found, str) else found.model_dump(mode="json")

    def _read(self) -> HostReading | str:
        if self._host is None:
            return "the campaign did not watch the host"
        return self._host.read(self._cores, self._process_ids)
