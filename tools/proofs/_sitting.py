"""One sitting of a campaign: a process of its own that drives fake children and can be made to die anywhere.

The children are those of `tests/lab/fake.py`; the driver, its store, its plan, journal and lock are the real ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import multiprocessing
import os
import random
import signal
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.events import CampaignResult
from lanewise.receipts.store import Store
from lanewise.train.request import RunRequest
from tests.lab.fake import BASE_SECONDS, MACHINE, FakeEndpoint, Script, World, options, place

FEATURES = ("fused_moe", "fused_recurrent")
BLOCKS = 3
TOKEN = "proof"
EFFECT = {"fused_moe": 0.8, "fused_recurrent": 1.0}

Manner = Literal["by clock", "at a file call", "torn write"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """How a driver dies.

    Attributes:
        manner: SIGKILL from outside after `after_seconds`; by itself right before or after its `call`-th file call; or
            there, after the file that was about to be synced has been cut at a random byte, as a power cut would do.
        call: number of the call, from 1.
        after_seconds: wall time from the start of the process.
        seed: of the side of the call and of the byte.
    """

    manner: Manner
    call: int
    after_seconds: float
    seed: int


def draw_death(rng: random.Random, num_calls: int, seconds: float) -> Death:
    """A death at any point of an uninterrupted campaign of so many file calls and seconds."""
    return Death(
        manner=rng.choice(("by clock", "at a file call", "torn write")),
        call=rng.randint(1, num_calls),
        after_seconds=rng.uniform(0.0, seconds),
        seed=rng.getrandbits(32),
    )


class LoggedWorld(World):
    """A world whose children leave a line in a log when they are started, and whose step times depend on nothing else."""

    log: Path

    def launch(self, request: RunRequest) -> FakeEndpoint:
        """Put a child on record, then start it."""
        with self.log.open("a", encoding="ascii") as file:
            file.write(f"{place(request)}\n")
        return super().launch(request)


def sit(root: Path, log: Path, *, now: str, death: Death | None) -> int | None:
    """Start or resume the campaign in a process of its own; returns its exit code, −9 when it was killed."""
    process = multiprocessing.get_context("fork").Process(
        target=_drive, args=(root, log, now, death)
    )
    process.start()
    if death is not None and death.manner == "by clock":
        process.join(death.after_seconds)
        process.kill()
    process.join()
    return process.exitcode


def campaign_folder(root: Path) -> CampaignFolder | None:
    """The campaign's folder; None while it has no plan."""
    plans = sorted((root / "campaigns").glob("*/plan.json"))
    return CampaignFolder(plans[0].parent) if plans else None


def count_calls(root: Path, log: Path, now: str) -> int:
    """File calls of an uninterrupted campaign, which is run in this process."""
    with _calls_watched(lambda _number, _descriptor, _before: None) as number:
        run_campaign(root, log, now)
        return number()


def run_campaign(root: Path, log: Path, now: str) -> CampaignResult:
    """Start the campaign, or resume the newest unfinished one where there is a plan."""
    world = LoggedWorld(store=Store(root), script=Script(seconds=_seconds), tokens=[TOKEN])
    world.log = log
    lab = replace(world.lab(), now=lambda: now)
    if campaign_folder(root) is None:
        return lab.start(options(features=FEATURES, blocks=BLOCKS, budget_seconds=1e5))
    return lab.resume(options().lane, MACHINE, None)


def _drive(root: Path, log: Path, now: str, death: Death | None) -> None:
    if death is None or death.manner == "by clock":
        run_campaign(root, log, now)
        return
    rng = random.Random(death.seed)
    dies_before = rng.random() < 0.5 or death.manner == "torn write"

    def strike(number: int, descriptor: int | None, before: bool) -> None:
        if number != death.call or before != dies_before:
            return
        if death.manner == "torn write" and descriptor is not None:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                # What was synced before is on the disk; of the journal that is all but its last line.
                synced = _synced_bytes(descriptor, status.st_size)
                os.truncate(descriptor, rng.randint(synced, status.st_size))
        os.kill(os.getpid(), signal.SIGKILL)

    with _calls_watched(strike):
        run_campaign(root, log, now)


def _synced_bytes(descriptor: int, size_bytes: int) -> int:
    path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    if path.suffix != ".jsonl":
        return 0
    return path.read_bytes().rfind(b"\n", 0, size_bytes - 1) + 1


@contextlib.contextmanager
def _calls_watched(
    watch: Callable[[int, int | None, bool], None],
) -> Iterator[Callable[[], int]]:
    """Tell `watch` (number, file descriptor, whether before) of every sync and rename; yields their number so far."""
    number = 0

    def watched(real: Callable[..., None], *, on_descriptor: bool) -> Callable[..., None]:
        def call(*arguments: Any, **named: Any) -> None:
            nonlocal number
            number += 1
            mine, descriptor = number, arguments[0] if on_descriptor else None
            watch(mine, descriptor, True)
            real(*arguments, **named)
            watch(mine, descriptor, False)

        return call

    with (
        mock.patch("os.fsync", watched(os.fsync, on_descriptor=True)),
        mock.patch("os.replace", watched(os.replace, on_descriptor=False)),
        mock.patch("os.rename", watched(os.rename, on_descriptor=False)),
    ):
        yield lambda: number


def _seconds(request: RunRequest, step: int, _now: float) -> float:
    """Step time from the place of the step alone: level of the process, noise of the step, effect of the feature."""
    where = place(request)
    factor = next(
        (
            ratio
            for key, ratio in EFFECT.items()
            if where.startswith(f"{key}/") and where[-1] == "B"
        ),
        1.0,
    )
    return BASE_SECONDS * factor * math.exp(0.003 * (_noise(where) + _noise(f"{where}/{step}")))


def _noise(label: str) -> float:
    """A fixed draw between −1 and 1 for every label."""
    drawn = int.from_bytes(hashlib.sha256(label.encode()).digest()[:6], "big")
    return drawn / 2**47 - 1.0
