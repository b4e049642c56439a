"""Spoiled lanes, configurations, records, plans, journals and indexes: each is accepted or refused in one line.

    python -m tools.proofs.fuzz KIND NUMBER     tries one document again and shows what happens

Every document has its own seed, so a number is enough to make it again; those that fail are kept in `FAILURES` as well.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from lanewise.errors import LanewiseError
from tools.proofs import Claim, Proof
from tools.proofs._kinds import Kind, Mistake, kinds

SEED = 20261123
LIMIT_SECONDS = 2.0
"""Processor time a document may take; most take a thousandth of it."""
LIMIT_BYTES = 2**30
"""Address space that all documents together may take beyond what the imports have."""
MIN_EACH = 40
"""Documents of every kind at any scale, so that some are accepted and some refused."""
MAX_LINE = 2_000
"""Characters of a message that somebody may still read."""
FAILURES = Path(tempfile.gettempdir()) / "lanewise-fuzz"


class _TookTooLong(BaseException):
    """The processor time of one document is up; no `except Exception` may swallow it."""


@dataclass(kw_only=True)
class Tally:
    """What became of the documents of one kind."""

    accepted: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def run(scale: float) -> Proof:
    """Try every kind, in a process of its own whose memory is bounded."""
    started = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        tallies = pool.submit(_try_all, scale).result()
    tried = {
        name: tally.accepted + tally.refused + len(tally.failures)
        for name, tally in tallies.items()
    }
    failures = [f"{name} {text}" for name, tally in tallies.items() for text in tally.failures]
    sorts = Counter(text.split(": ")[1] for text in failures)
    slowest = max(tally.slowest_seconds for tally in tallies.values())
    return Proof(
        name="fuzz",
        title=f"Spoiled documents (seed {SEED})",
        counts={"documents": sum(tried.values())},
        claims=(
            Claim(
                text="documents that were neither accepted nor refused in one line",
                measured=f"{len(failures)}" + "".join(f"; {n} {what}" for what, n in sorts.items()),
                required="0",
                holds=not failures,
            ),
            Claim(
                text="processor time of the slowest document",
                measured=f"{slowest:.2f} s",
                required=f"below {LIMIT_SECONDS:g} s",
                holds=slowest < LIMIT_SECONDS,
            ),
            Claim(
                text="kinds of which some documents are accepted and come back the same, and some refused",
                measured=str(sum(bool(t.accepted and t.refused) for t in tallies.values())),
                required=f"{len(tallies) - 2}: a receipt's bytes are hashed, and an index is made anew",
                holds=sum(bool(t.accepted and t.refused) for t in tallies.values())
                >= len(tallies) - 2,
            ),
        ),
        tables={
            "What became of them": [
                ["kind", "documents", "accepted", "refused", "failed", "slowest"],
                *(
                    [
                        name,
                        f"{tried[name]:,}",
                        f"{tally.accepted:,}",
                        f"{tally.refused:,}",
                        str(len(tally.failures)),
                        f"{tally.slowest_seconds * 1e3:.0f} ms",
                    ]
                    for name, tally in tallies.items()
                ),
            ]
        },
        seconds=time.perf_counter() - started,
    )


def _try_all(scale: float) -> dict[str, Tally]:
    signal.signal(signal.SIGPROF, _too_long)
    with tempfile.TemporaryDirectory(prefix="lanewise-fuzz-") as scratch:
        found = kinds(Path(scratch))
        soft = _address_space() + LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
        return {kind.name: _try_kind(kind, scale, Path(scratch)) for kind in found}


def _try_kind(kind: Kind, scale: float, scratch: Path) -> Tally:
    tally = Tally()
    folder = scratch / "one"
    folder.mkdir(exist_ok=True)
    for number in range(max(MIN_EACH, round(kind.count * scale))):
        content = kind.spoil(random.Random(f"{SEED}/{kind.name}/{number}"))
        begun = time.process_time()
        failure = _failure(kind, content, folder, tally)
        tally.slowest_seconds = max(tally.slowest_seconds, time.process_time() - begun)
        if failure is not None:
            tally.failures.append(f"{number}: {failure}")
            FAILURES.mkdir(exist_ok=True)
            (FAILURES / f"{kind.name}-{number}".replace(" ", "_")).write_bytes(content)
            print(f"  {kind.name} {number}: {failure}", file=sys.stderr, flush=True)
    return tally


def _failure(kind: Kind, content: bytes, folder: Path, tally: Tally) -> str | None:
    """Why a document counts as failed, or None."""
    try:
        signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
        try:
            accepted = kind.check(content, folder)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
    except LanewiseError as error:
        fault = _fault_of_message(error)
        tally.refused += fault is None
        return fault
    except _TookTooLong:
        return f"took more than {LIMIT_SECONDS:g} s"
    except (Mistake, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001  # whatever else is raised is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:120]}"
    tally.accepted += accepted
    tally.refused += not accepted
    return None


def _fault_of_message(error: LanewiseError) -> str | None:
    """Messages are one line a problem, printable, of a length a person reads."""
    problems = getattr(error, "problems", ())
    lines = [str(problem) for problem in problems] or [str(error)]
    for line in lines:
        if not line.strip():
            return "empty message"
        if "\n" in line or "\r" in line:
            return f"message of several lines: {line[:120]!r}"
        if len(line) > MAX_LINE:
            return f"message of {len(line)} characters: {line[:120]!r}"
        if not line.isprintable():
            return f"message with signs that do not print: {line[:120]!r}"
    return None


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise _TookTooLong


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return pages * resource.getpagesize()


def _again(name: str, number: int) -> None:
    """Try one document outside of all limits, with the whole traceback."""
    with tempfile.TemporaryDirectory(prefix="lanewise-fuzz-") as scratch:
        kind = next(kind for kind in kinds(Path(scratch)) if kind.name == name)
        content = kind.spoil(random.Random(f"{SEED}/{kind.name}/{number}"))
        print(repr(content[:4_000]))
        folder = Path(scratch) / "one"
        folder.mkdir()
        print("accepted" if kind.check(content, folder) else "refused")


if __name__ == "__main__":
    _again(sys.argv[1], int(sys.argv[2]))
