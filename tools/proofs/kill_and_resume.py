"""Campaigns whose driver is killed with SIGKILL anywhere, again and again, then resumed until they are complete."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lanewise.errors import LanewiseError
from lanewise.lab.journal import BlockDone
from lanewise.receipts.decision import CampaignRecord, Decision
from lanewise.receipts.store import Store
from lanewise.receipts.validate import store_faults
from tools.proofs import Claim, Proof
from tools.proofs._sitting import campaign_folder, count_calls, draw_death, sit

NUM_CAMPAIGNS = 200
MAX_KILLS = 5
"""Kills of one campaign, at most; at least one."""
SEED = 20261123
START = "2026-11-23T10:00:00Z"
CLOCKS = (
    "2026-11-23T10:00:05Z",
    "2026-11-23T09:59:00Z",
    "2027-03-01T00:00:00Z",
    "1999-12-31T23:59:59Z",
)
"""What the wall clock says in resumed sittings: it jumps, and nothing may depend on it."""

Done = dict[tuple[str, int], BlockDone]


@dataclass(kw_only=True)
class Tally:
    """What went wrong, and how often there was the chance."""

    sittings: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    lost_blocks: int = 0
    run_again: int = 0
    damaged: int = 0
    uncited: int = 0
    stuck: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def run(scale: float) -> Proof:
    """Kill and resume; compare each campaign with one that nobody touched."""
    started = time.perf_counter()
    num_campaigns = max(2, round(NUM_CAMPAIGNS * scale))
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="lanewise-kill-") as folder:
        undisturbed = Path(folder) / "undisturbed"
        num_calls = count_calls(undisturbed, Path(folder) / "undisturbed.log", START)
        timed = time.perf_counter()
        sit(Path(folder) / "timed", Path(folder) / "timed.log", now=START, death=None)
        seconds = time.perf_counter() - timed
        expected = _outcome(undisturbed)
        for number in range(num_campaigns):
            root = Path(folder) / str(number)
            _torment(root, random.Random(f"{SEED}/{number}"), num_calls, seconds, tally)
            if _outcome(root) != expected:
                tally.different.append(f"campaign {number}")
    kills = sum(tally.killed.values())
    return Proof(
        name="kill_and_resume",
        title=f"Killed drivers (seed {SEED})",
        counts={"campaigns": num_campaigns, "sittings": tally.sittings, "kills": kills},
        claims=(
            Claim(
                text="drivers were killed in every manner",
                measured=", ".join(f"{count} {how}" for how, count in sorted(tally.killed.items())),
                required="at least one kill a campaign",
                holds=kills >= num_campaigns,
            ),
            _none("finished blocks that a later sitting did not know", tally.lost_blocks),
            _none("finished blocks that were run again", tally.run_again),
            _none("damaged files after any sitting", tally.damaged),
            _none("receipts in the end that no line of the journal cites", tally.uncited),
            _none("campaigns that did not complete when resumed", len(tally.stuck), tally.stuck),
            _none(
                "campaigns whose decisions differ from the undisturbed one's",
                len(tally.different),
                tally.different,
            ),
        ),
        seconds=time.perf_counter() - started,
    )


def _torment(root: Path, rng: random.Random, num_calls: int, seconds: float, tally: Tally) -> None:
    log = root.with_suffix(".log")
    log.touch()
    finished: Done = {}
    kills, wanted = 0, rng.randint(1, MAX_KILLS)
    for _ in range(3 * MAX_KILLS):
        if kills >= wanted or not _is_open(root):
            break
        # Later sittings have less to do, so early points are drawn more often than late ones.
        reach = rng.choice((0.1, 0.4, 1.0))
        death = draw_death(rng, max(1, round(num_calls * reach)), seconds * reach)
        code = _sit(root, log, rng, finished, tally, death)
        if code == -9:
            kills += 1
            tally.killed[death.manner] += 1
        finished = _finished(root)
    if _is_open(root):
        code = _sit(root, log, rng, finished, tally, None)
        if code != 0 or _is_open(root):
            tally.stuck.append(f"{root.name} (exit {code})")
    cited = {
        receipt
        for entry in _finished(root).values()
        for ids in entry.receipts.values()
        for receipt in ids
    }
    stored = {f"sha256:{file.stem}" for file in Store(root).receipt_files()}
    tally.uncited += len(stored - cited)


def _sit(
    root: Path, log: Path, rng: random.Random, finished: Done, tally: Tally, death: object
) -> int | None:
    begun = len(log.read_text().splitlines())
    tally.sittings += 1
    code = sit(root, log, now=rng.choice(CLOCKS) if campaign_folder(root) else START, death=death)
    launched = {
        tuple(line.split("/")[:2])
        for line in log.read_text().splitlines()[begun:]
        if line != "pilot"
    }
    after = _finished(root)
    tally.run_again += sum((feature, str(block)) in launched for feature, block in finished)
    tally.lost_blocks += sum(after.get(where) != entry for where, entry in finished.items())
    tally.damaged += sum(bool(faults) for _location, faults in store_faults(Store(root)))
    return code


def _finished(root: Path) -> Done:
    folder = campaign_folder(root)
    return folder.finished() if folder else {}


def _is_open(root: Path) -> bool:
    try:
        return next(Store(root).iter_campaigns()).status != "COMPLETE"
    except (StopIteration, LanewiseError):
        return True


def _outcome(root: Path) -> tuple[list[CampaignRecord], list[Decision]]:
    """Documents of a store but for the times at which they were written."""
    store = Store(root)
    return (
        [c.model_copy(update={"finished_at": None}) for c in store.iter_campaigns()],
        [d.model_copy(update={"created_at": ""}) for d in store.iter_decisions()],
    )


def _none(text: str, count: int, which: list[str] | None = None) -> Claim:
    named = f": {', '.join(which[:5])}" if which else ""
    return Claim(text=text, measured=f"{count}{named}", required="0", holds=count == 0)
