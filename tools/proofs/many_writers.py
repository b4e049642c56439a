"""Eight processes write a thousand receipts each into one store while the index is being asked: none is lost."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from lanewise.receipts.index import Index
from lanewise.receipts.schema import StepSeries
from lanewise.receipts.store import Store
from lanewise.receipts.validate import store_faults
from tests.receipts.factory import make_body
from tools.proofs import Claim, Proof

NUM_WRITERS = 8
RECEIPTS_EACH = 1_000
SHARED_EVERY = 50
"""Every so many receipts, all writers write the very same one, so that they meet on one name."""


def run(scale: float) -> Proof:
    """Write, ask the index meanwhile, then compare store and index with what was written."""
    started = time.perf_counter()
    each = max(5, round(RECEIPTS_EACH * scale))
    with tempfile.TemporaryDirectory(prefix="lanewise-writers-") as folder:
        root, notes = Path(folder) / "store", Path(folder) / "written"
        notes.mkdir()
        context = multiprocessing.get_context("fork")
        writers: list[BaseProcess] = [
            context.Process(target=_write, args=(str(root), notes / str(writer), writer, each))
            for writer in range(NUM_WRITERS)
        ]
        for writer in writers:
            writer.start()
        queries, backwards = _ask(Index(Store(root)), writers)
        failed = sum(writer.exitcode != 0 for writer in writers)
        written = {line for note in notes.iterdir() for line in note.read_text().splitlines()}
        store = Store(root)
        stored = {f"sha256:{file.stem}" for file in store.receipt_files()}
        indexed = {row.fields.id for row in Index(store).query().rows}
        rebuilt = Index(store).reindex()
        damaged = sum(bool(faults) for _location, faults in store_faults(store))
        leftovers = sum(path.name.startswith(".") for path in root.rglob("*"))
    shared = len(range(0, each, SHARED_EVERY))
    expected = NUM_WRITERS * (each - shared) + shared
    return Proof(
        name="many_writers",
        title="Many writers of one store",
        counts={"writers": NUM_WRITERS, "receipts": NUM_WRITERS * each, "index_queries": queries},
        claims=(
            _none("writers fail", failed),
            Claim(
                text="every receipt is in the store",
                measured=f"{len(stored & written)} of {len(written)}",
                required=f"{expected}, those that all writers share counted once",
                holds=stored == written and len(written) == expected,
            ),
            Claim(
                text="the index lists exactly them",
                measured=f"{len(indexed)} as it grew, {rebuilt.num_receipts} rebuilt",
                required=str(expected),
                holds=indexed == stored and rebuilt.num_receipts == expected,
            ),
            _none("times the index forgot a receipt while others wrote", backwards),
            _none("damaged receipts or sidecars", damaged),
            _none("temporary files left behind", leftovers),
        ),
        seconds=time.perf_counter() - started,
    )


def _write(root: str, note: Path, writer: int, each: int) -> None:
    store = Store(root)
    with note.open("w", encoding="ascii") as written:
        for number in range(each):
            shared = number % SHARED_EVERY == 0
            body = make_body(
                {"experiment.block": number, "experiment.order_seed": -1 if shared else writer}
            )
            receipt_id, _location = store.write_receipt(
                body, steps=_series(number if shared else number + writer / 10)
            )
            written.write(f"{receipt_id}\n")


def _series(seed: float) -> StepSeries:
    return StepSeries(
        step=(0, 1),
        start_seconds=(0.0, 1.0),
        duration_seconds=(1.0 + seed, 1.0),
        data_wait_seconds=(0.0, 0.0),
        loss=(5.0, 4.0),
        grad_norm=(1.0, 1.0),
    )


def _ask(index: Index, writers: list[BaseProcess]) -> tuple[int, int]:
    """Ask the index until the writers are done; returns how often, and how often it knew less than before."""
    queries = backwards = known = 0
    while any(writer.is_alive() for writer in writers):
        found = index.query(limit=1).num_matches
        backwards += found < known
        known = found
        queries += 1
        writers[0].join(timeout=0.2)
    for writer in writers:
        writer.join()
    return queries, backwards


def _none(text: str, count: int) -> Claim:
    return Claim(text=text, measured=str(count), required="0", holds=count == 0)
