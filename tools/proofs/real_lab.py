"""A lab with real training processes, for proofs that measure this machine."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime

import psutil

from lanewise.lab.children import ForkServerLauncher
from lanewise.lab.prepare import CampaignOptions
from lanewise.lab.session import Lab
from lanewise.lane.load import load_lane
from lanewise.lane.machine import DEFAULT_CPU_THREADS, detect_machine_class
from lanewise.measure.host import SystemHost
from lanewise.receipts.store import Store

LANE = "nam56r-tiny"


def real_lab(root: str) -> Lab:
    """A lab that writes below `root`."""
    return Lab(
        store=Store(root),
        launcher=lambda num_threads: ForkServerLauncher(num_threads=num_threads),
        clock=time.monotonic,
        now=lambda: datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        new_token=lambda: secrets.token_hex(3),
        free_memory_bytes=lambda _device: int(psutil.virtual_memory().available),
        listen=lambda _event: None,
        # As the command line does it: arms on cores of their own, and blocks beside foreign load run again.
        host=SystemHost(),
    )


def tiny_campaign(*, budget_seconds: float, seed: int) -> CampaignOptions:
    """Options of a campaign on the tiny lane; whoever starts it names the feature and the blocks."""
    return CampaignOptions(
        lane=load_lane(LANE),
        machine_class=detect_machine_class("cpu"),
        device_type="cpu",
        features=(),
        budget_seconds=budget_seconds,
        design="leave-one-out",
        block_design="lockstep",
        blocks=None,
        seed=seed,
        num_threads=DEFAULT_CPU_THREADS,
        data_path=None,
    )
