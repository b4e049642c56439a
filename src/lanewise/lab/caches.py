"""Private compile caches of a campaign: one folder per configuration, filled by the pilot (warm), or empty for every run (cold).

    <store>/.compile-cache/<campaign>/warm/<config digest>/        what all runs of a configuration find
    <store>/.compile-cache/<campaign>/warm/<config digest>.ready   the pilot has filled it
    <store>/.compile-cache/<campaign>/cold/…                       one per run, removed after the block

A configuration has a folder of its own, because two arms share some graphs and would find each other's. The folders are no
evidence: receipts hold their digest, and a finished campaign removes them.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lanewise.errors import StoreError
from lanewise.lane.resolved import ResolvedLane

CacheMode = Literal["warm", "cold"]

FOLDER = ".compile-cache"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileCaches:
    """The caches of one campaign.

    Attributes:
        root: folder of its own.
        mode: what every run shall find.
    """

    root: Path
    mode: CacheMode

    @classmethod
    def of(cls, store_root: str, campaign_id: str, mode: CacheMode) -> CompileCaches:
        """The caches of a campaign in a store."""
        return cls(root=Path(store_root) / FOLDER / campaign_id, mode=mode)

    def folder(self, resolved: ResolvedLane) -> str:
        """Folder for one run of a configuration.

        Raises:
            StoreError: the disk refuses it.
        """
        if not compiles(resolved):
            return str(self.root / "eager")
        if self.mode == "warm":
            return str(self._warm(resolved))
        try:
            (self.root / "cold").mkdir(parents=True, exist_ok=True)
            return tempfile.mkdtemp(dir=self.root / "cold")
        except OSError as error:
            raise self._refused(error) from error

    def needs_filling(self, resolved: ResolvedLane) -> bool:
        """Whether a run of this configuration would find its cache empty though it shall be warm."""
        return self.mode == "warm" and compiles(resolved) and not self._ready(resolved).exists()

    def filled(self, resolved: ResolvedLane) -> None:
        """Note that the cache of a configuration has been filled by runs that nothing is read from.

        Raises:
            StoreError: the disk refuses it.
        """
        if self.mode == "cold" or not compiles(resolved):
            return
        try:
            self._ready(resolved).parent.mkdir(parents=True, exist_ok=True)
            self._ready(resolved).touch()
        except OSError as error:
            raise self._refused(error) from error

    def clear_cold(self) -> None:
        """Remove what cold runs have left."""
        shutil.rmtree(self.root / "cold", ignore_errors=True)

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _warm(self, resolved: ResolvedLane) -> Path:
        return self.root / "warm" / resolved.config_digest.removeprefix("sha256:")[:16]

    def _ready(self, resolved: ResolvedLane) -> Path:
        return self._warm(resolved).with_suffix(".ready")

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.root}: cannot be written ({error.strerror or error}); free some space or give another --store"
        )


def compiles(resolved: ResolvedLane) -> bool:
    """Whether a configuration compiles anything."""
    return any(resolved.runtime_switches.values())
