"""The index says what the files say, after any history and any damage."""

import json
import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lanewise.receipts.document import short
from lanewise.receipts.index import Index, Listing
from lanewise.receipts.store import Store
from tests.receipts.factory import CAMPAIGN_ID, make_body, make_decision, make_steps, sha


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def ids(listing: Listing) -> list[str | None]:
    return [row.fields.id for row in listing.rows]


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    history=st.lists(
        st.tuples(
            st.sampled_from(["write", "delete", "break", "ask", "reindex"]), st.integers(0, 3)
        ),
        max_size=10,
    )
)
def test_the_index_equals_the_files_after_any_history(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int]]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    index = Index(store)
    for action, block in history:
        path = Path(store.write_receipt(make_body({"experiment.block": block}))[1])
        if action == "delete":
            path.unlink()
        elif action == "break":
            path.write_bytes(path.read_bytes()[:50])
        elif action == "ask":
            index.query()
        elif action == "reindex":
            index.reindex()
    problems: list = []
    readable = sorted(receipt.receipt_id for receipt in store.iter_receipts(problems))
    listing = index.query()
    assert sorted(map(str, ids(listing))) == readable
    assert len(listing.unreadable) == len(problems)
    assert Index(store).reindex().num_receipts == len(readable) + len(problems)


def test_promoted_fields_are_those_of_the_file(store: Store) -> None:
    receipt_id, location = store.write_receipt(make_body(), steps=make_steps())
    (row,) = Index(store).query().rows
    assert row.location == location
    fields = row.fields
    assert (fields.id, fields.lane_name, fields.lane_digest) == (
        receipt_id,
        "nam56r-tiny",
        sha("lane"),
    )
    assert (fields.campaign_id, fields.ablation_id) == (CAMPAIGN_ID, "fused_moe")
    assert (fields.arm, fields.block) == ("B", 0)
    assert (fields.status, fields.validity) == ("success", "valid")
    assert (fields.median_step_seconds, fields.tokens_per_second) == (0.1, 5120.0)
    assert (fields.peak_bytes, fields.goodput_ratio) == (120_000_000, 0.5555555555555556)


def test_what_was_not_measured_is_none(store: Store) -> None:
    store.write_receipt(
        make_body(
            {
                "experiment": None,
                "goodput": None,
                "timing.step_duration_seconds": None,
                "throughput.tokens_per_second": None,
                "memory.peak_allocated_bytes": None,
            }
        )
    )
    fields = Index(store).query().rows[0].fields
    assert (fields.arm, fields.block, fields.goodput_ratio) == (None, None, None)
    assert (fields.median_step_seconds, fields.tokens_per_second) == (None, None)
    assert fields.peak_bytes == 480_000_000


def test_queries_filter_sort_and_limit(store: Store) -> None:
    def write(**changes: object) -> str:
        return store.write_receipt(
            make_body({k.replace("__", "."): v for k, v in changes.items()})
        )[0]

    old = write(created_at="2026-10-01T00:00:00Z")
    new = write(created_at="2026-12-01T00:00:00Z", experiment__campaign_id="other")
    bad = write(created_at="2026-11-01T00:00:00Z", outcome__validity="invalid")
    elsewhere = write(lane__name="mine", lane__digest=sha("mine"), experiment__ablation_id="none")
    index = Index(store)
    assert ids(index.query()) == [new, elsewhere, bad, old]
    assert ids(index.query(limit=2)) == [new, elsewhere]
    assert index.query(limit=2).num_matches == 4
    assert ids(index.query(campaign="other")) == [new]
    assert ids(index.query(validity="invalid")) == [bad]
    assert ids(index.query(lane="mine")) == [elsewhere]
    assert ids(index.query(lane=sha("mine")[:14])) == [elsewhere]
    assert ids(index.query(lane="min")) == []
    assert ids(index.query(feature="fused_moe", validity="valid")) == [new, old]


def test_decisions_are_indexed(store: Store) -> None:
    store.write_decision(make_decision())
    index = Index(store)
    fields = index.query(kind="decision", feature="fused_moe").rows[0].fields
    assert (fields.id, fields.verdict, fields.status) == (
        f"{CAMPAIGN_ID}-fused_moe",
        "FASTER",
        "COMPLETE",
    )
    store.write_decision(make_decision({"verdict": "INCONCLUSIVE"}))
    assert index.query(kind="decision").rows[0].fields.verdict == "INCONCLUSIVE"


def test_only_changed_files_are_parsed_again(store: Store) -> None:
    _, location = store.write_receipt(make_body())
    store.write_receipt(make_body({"experiment.arm": "A"}))
    index = Index(store)
    assert index.refresh().num_parsed == 2
    assert index.refresh().num_parsed == 0
    os.utime(location, ns=(1, 1))
    assert index.refresh().num_parsed == 1
    Path(location).unlink()
    done = index.refresh()
    assert (done.num_parsed, done.num_removed, done.num_receipts) == (0, 1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema_version": "1.0.0", "kind": "ru', "truncated"),
        (b'{"schema_version": "2.0.0", "kind": "run"}', "pip install --upgrade lanewise"),
        (b'{"schema_version": "1.0.0", "kind": "run"}', "no receipt of schema 1.0.0 (KeyError"),
    ],
)
def test_unreadable_receipts_are_listed_and_not_fatal(
    store: Store, content: bytes, message: str
) -> None:
    receipt_id, location = store.write_receipt(make_body())
    broken = Path(location).with_name("0" * 64 + ".json")
    broken.write_bytes(content)
    listing = Index(store).query()
    assert ids(listing) == [receipt_id]
    assert len(listing.unreadable) == 1
    assert message in listing.unreadable[0]
    assert str(broken) in listing.unreadable[0]


def test_a_field_of_a_wrong_type_and_a_wrong_name_are_unreadable(store: Store) -> None:
    _, location = store.write_receipt(make_body())
    document = json.loads(Path(location).read_bytes())
    Path(location).rename(Path(location).with_name("1" * 64 + ".json"))
    assert "rename the file to" in Index(store).query().unreadable[0]
    document["outcome"]["status"] = 7
    Path(location).with_name("1" * 64 + ".json").write_text(json.dumps(document))
    assert "7 is no text" in Index(store).query().unreadable[0]


def overwrite_header(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def drop_table(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE files")
    database.close()


def newer_layout(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


@pytest.mark.parametrize(
    "damage", [overwrite_header, cut_in_half, empty, drop_table, newer_layout, Path.unlink]
)
def test_a_damaged_or_missing_index_is_made_again(store: Store, damage) -> None:
    written = sorted(
        store.write_receipt(make_body({"experiment.block": block}))[0] for block in range(20)
    )
    index = Index(store)
    assert sorted(map(str, ids(index.query()))) == written
    damage(index.path)
    assert sorted(map(str, ids(index.query()))) == written
    assert index.refresh().num_parsed == 0
    assert index.refresh().path == str(index.path)


def test_a_store_that_does_not_exist_is_empty_and_stays_absent(tmp_path: Path) -> None:
    index = Index(Store(tmp_path / "nowhere"))
    assert index.query().rows == ()
    assert index.reindex().path is None
    assert not (tmp_path / "nowhere").exists()


def test_an_index_that_cannot_be_written_is_made_in_memory(store: Store) -> None:
    receipt_id, _ = store.write_receipt(make_body())
    (Path(store.root) / "index.sqlite").mkdir()
    index = Index(store)
    assert ids(index.query()) == [receipt_id]
    assert index.refresh().path is None


def test_a_locked_index_does_not_stop_an_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt_id, _ = store.write_receipt(make_body())
    monkeypatch.setattr("lanewise.receipts.index.BUSY_TIMEOUT_SECONDS", 0.01)
    index = Index(store)
    index.refresh()
    with sqlite3.connect(index.path) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        assert ids(index.query()) == [receipt_id]
    holder.close()


def test_the_index_of_a_uri_lives_elsewhere(tmp_path: Path) -> None:
    store = Store(f"memory://{tmp_path.name}")
    receipt_id, _ = store.write_receipt(make_body())
    index = Index(store, tmp_path / "index.sqlite")
    assert ids(index.query()) == [receipt_id]
    assert index.refresh().num_parsed == 0
    assert index.query().rows[0].fields.id == receipt_id
    assert short(receipt_id) in index.query().rows[0].location
    assert Index(store).path.name.startswith("index-")


def test_files_of_a_folder_at_rest_are_not_looked_at(store: Store) -> None:
    _, location = store.write_receipt(make_body())
    index = Index(store, now_ns=lambda: 2**62)  # every folder is old enough to be trusted
    assert index.refresh().num_parsed == 1
    os.utime(location, ns=(1, 1))  # in place: the folder's own time stays
    assert index.refresh().num_parsed == 0
    assert index.reindex().num_parsed == 1


def test_new_replaced_and_deleted_files_of_a_folder_at_rest_are_noticed(store: Store) -> None:
    receipt_id, location = store.write_receipt(make_body())
    index = Index(store, now_ns=lambda: 2**62)
    assert index.refresh().num_parsed == 1
    store.write_receipt(make_body({"experiment.arm": "A"}))
    assert index.refresh().num_parsed == 1
    content = Path(location).read_bytes()
    replacement = Path(location).with_suffix(".new")
    replacement.write_bytes(content + b"\n")
    replacement.replace(location)
    assert index.refresh().num_parsed == 1
    Path(location).unlink()
    done = index.refresh()
    assert (done.num_removed, done.num_receipts) == (1, 1)
    assert receipt_id not in {row.fields.id for row in index.query().rows}


def test_a_folder_changed_a_moment_ago_is_looked_into_again(store: Store) -> None:
    _, location = store.write_receipt(make_body())
    changed_ns = os.stat(Path(location).parent).st_mtime_ns
    index = Index(store, now_ns=lambda: changed_ns + 1)
    assert index.refresh().num_parsed == 1
    os.utime(location, ns=(1, 1))  # stands for a file made in the clock tick of the listing
    assert index.refresh().num_parsed == 1


def test_a_folder_that_is_gone_takes_its_rows_with_it(store: Store) -> None:
    _, location = store.write_receipt(make_body())
    index = Index(store, now_ns=lambda: 2**62)
    index.refresh()
    Path(location).unlink()
    Path(location).parent.rmdir()
    done = index.refresh()
    assert (done.num_removed, done.num_receipts) == (1, 0)
