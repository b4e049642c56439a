"""Index 10,000 receipts and query them: `python -m benchmarks.receipt_index`.

The receipts are the golden one with other blocks, arms, months and ids. Their ids are not digests of their content: the
index does not look at that, and hashing 10,000 bodies would take longer than the benchmark.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks import Figure, report
from lanewise.receipts.index import Index
from lanewise.receipts.store import Store

NUM_RECEIPTS = 10_000
NUM_QUERIES = 9
ResultT = TypeVar("ResultT")
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "receipts" / "golden" / "receipt-1.0.json"


def make_store(root: Path, num_receipts: int) -> Store:
    """A store of receipts over a year, written without fsync and at rest since an hour ago."""
    document = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for number in range(num_receipts):
        month = f"2026-{1 + number % 12:02d}"
        digits = hashlib.sha256(str(number).encode()).hexdigest()
        document["receipt_id"] = f"sha256:{digits}"
        document["created_at"] = f"{month}-23T10:00:00Z"
        document["experiment"]["block"] = number
        document["experiment"]["campaign_id"] = f"campaign-{number // 100}"
        folder = root / "receipts" / document["lane"]["name"] / month
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{digits}.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    an_hour_ago = time.time() - 3600
    for folder in (root / "receipts").rglob("*"):
        if folder.is_dir():
            os.utime(folder, (an_hour_ago, an_hour_ago))
    return Store(root)


def figures() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        index = Index(make_store(Path(folder), NUM_RECEIPTS))
        build_seconds, done = timed(index.reindex)
        assert (done.num_receipts, done.num_unreadable) == (NUM_RECEIPTS, 0)
        queries = [
            timed(lambda: index.query(campaign="campaign-7", limit=50)) for _ in range(NUM_QUERIES)
        ]
        assert {len(listing.rows) for _seconds, listing in queries} == {50}
    return [
        Figure(
            name=f"index {NUM_RECEIPTS:,} receipts",
            value=build_seconds,
            limit=5.0,
            unit="s",
            how="one full rebuild from the files",
        ),
        Figure(
            name="refresh and query the index",
            value=statistics.median(seconds for seconds, _listing in queries),
            limit=0.1,
            unit="s",
            how=f"median of {NUM_QUERIES}, folders at rest for more than 2 s",
        ),
    ]


def timed(work: Callable[[], ResultT]) -> tuple[float, ResultT]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    sys.exit(report(figures(), name="receipt-index", write="--write" in sys.argv))
