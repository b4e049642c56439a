"""`lanewise receipt`: what a person sees, what a program gets, and the exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lanewise.cli.main import run
from lanewise.receipts.document import receipt_id_of, short
from lanewise.receipts.store import Store
from tests.receipts.factory import make_body, make_decision, make_steps, sha

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def call(store: Store, *words: str) -> int:
    return run(["receipt", *words, "--store", store.root])


def one_line(text: str) -> str:
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


def test_list_shows_receipts_newest_first_and_names_the_unreadable(
    store: Store, capsys: Capture
) -> None:
    old, _ = store.write_receipt(make_body({"created_at": "2026-10-01T00:00:00Z"}))
    new, _ = store.write_receipt(make_body())
    _, broken = store.write_receipt(make_body({"experiment.block": 9}))
    Path(broken).write_bytes(b'{"schema')
    assert call(store, "list") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["receipt", "created", "lane"]
    assert [line.split()[0] for line in lines[1:]] == [short(new), short(old)]
    assert f"unreadable: {broken}: truncated" in one_line(err)


def test_list_filters(store: Store, capsys: Capture) -> None:
    ids = {
        validity: store.write_receipt(make_body({"outcome.validity": validity}))[0]
        for validity in ("valid", "invalid")
    }
    for words, expected in (
        (["--validity", "invalid"], [ids["invalid"]]),
        (["--lane", "nam56r-tiny", "--feature", "fused_moe"], sorted(ids.values())),
        (["--campaign", "other"], []),
    ):
        assert call(store, "list", "--json", *words) == 0
        document = json.loads(capsys.readouterr().out)
        assert sorted(row["id"] for row in document["receipts"]) == expected
    assert call(store, "list", "--limit", "1") == 0
    assert "1 more; `--limit 0` shows all" in capsys.readouterr().err
    assert call(store, "list", "--validity", "splendid") == 2


def test_list_of_a_store_that_does_not_exist(tmp_path: Path, capsys: Capture) -> None:
    missing = Store(tmp_path / "nowhere")
    assert call(missing, "list") == 0
    assert one_line(capsys.readouterr().err) == f"no receipts in {missing.root}\n"
    assert not Path(missing.root).exists()


def test_show_prints_a_summary_or_the_document(store: Store, capsys: Capture) -> None:
    receipt_id, location = store.write_receipt(make_body())
    assert call(store, "show", short(receipt_id)) == 0
    assert "sorted.torch → sorted.torch ✓" in capsys.readouterr().out
    assert call(store, "show", location, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path(location).read_bytes())


def test_refusals_are_one_line_and_exit_3(store: Store, capsys: Capture) -> None:
    _, location = store.write_receipt(make_body())
    path = Path(location)
    content = path.read_bytes()
    document = json.loads(content)
    newer = {**document, "schema_version": "2.0.0"}
    newer["receipt_id"] = receipt_id_of(newer)
    for damaged, message in (
        (content[: len(content) // 2], "truncated"),
        (content.replace(b'"success"', b'"aborted"'), "altered"),
        (json.dumps(newer).encode(), "pip install --upgrade lanewise"),
    ):
        path.write_bytes(damaged)
        for words in (["show", path.stem[:12]], ["show", location, "--json"]):
            assert call(store, *words) == 3
            assert message in one_line(capsys.readouterr().err)
    assert call(store, "show", "0" * 12) == 3
    assert "no receipt '000000000000'" in one_line(capsys.readouterr().err)


def test_validate_names_each_invalid_file_on_one_line(store: Store, capsys: Capture) -> None:
    receipt_id, location = store.write_receipt(make_body(), steps=make_steps())
    assert call(store, "validate") == 0
    assert capsys.readouterr().out == "1 file checked, 0 invalid\n"
    _, bad = store.write_receipt(make_body({"goodput.step_seconds": 3.0}))
    decision = store.write_decision(make_decision())
    assert call(store, "validate") == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"INVALID {bad}: goodput does not close")
    assert lines[1].startswith(f"INVALID {decision}: cites 2 receipts")
    assert lines[2:] == ["3 files checked, 2 invalid"]
    assert call(store, "validate", short(receipt_id), location) == 0
    assert capsys.readouterr().out == "2 files checked, 0 invalid\n"


def test_validate_takes_folders_and_unknown_ids(store: Store, capsys: Capture) -> None:
    store.write_receipt(make_body())
    assert run(["receipt", "validate", store.root]) == 0
    assert capsys.readouterr().out == "1 file checked, 0 invalid\n"
    assert call(store, "validate", "abc", "--json") == 3
    document = json.loads(capsys.readouterr().out)
    assert document["checked"] == 1
    assert "no receipt 'abc'" in document["invalid"][0]["faults"][0]


def test_diff_says_whether_two_receipts_are_comparable(store: Store, capsys: Capture) -> None:
    one, _ = store.write_receipt(make_body())
    other, _ = store.write_receipt(make_body({"numerics.loss_last": 4.0}))
    apart, _ = store.write_receipt(
        make_body({"data_digest": sha("x"), "outcome.validity": "invalid"})
    )
    assert call(store, "diff", one, other) == 0
    out = capsys.readouterr().out
    assert out.startswith("comparable (may differ in fused_moe)\n")
    assert "numerics.loss_last" in out
    assert call(store, "diff", one, apart) == 0
    out = capsys.readouterr().out
    assert out.startswith("not comparable (may differ in fused_moe): they differ in data_digest\n")
    assert f"{apart} is invalid and counts for nothing" in out
    assert call(store, "diff", one, apart, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["comparable"] is False
    assert document["differences"][0]["field"] == "data_digest"


def test_diff_shows_losses_against_steps_and_against_time(store: Store, capsys: Capture) -> None:
    quick, _ = store.write_receipt(make_body(), steps=make_steps(20))
    slow, _ = store.write_receipt(
        make_body({"numerics.loss_last": 4.0}), steps=make_steps(20, seconds=0.125)
    )
    assert call(store, "diff", quick, slow) == 0
    out = capsys.readouterr().out
    assert (
        "loss after 20 steps 4.6200 and 4.6200 (+0.0000); after 2.60 s of steps 4.6200 and" in out
    )
    assert call(store, "diff", quick, slow, "--json") == 0
    losses = json.loads(capsys.readouterr().out)["losses"]
    assert losses["equal_steps"]["treated"] == pytest.approx(4.62)
    assert losses["equal_time"]["treated"] > losses["equal_time"]["control"]


def test_diff_names_step_series_it_cannot_read(store: Store, capsys: Capture) -> None:
    one, location = store.write_receipt(make_body(), steps=make_steps(20))
    other, _ = store.write_receipt(make_body({"numerics.loss_last": 4.0}), steps=make_steps(21))
    (series,) = Path(location).parent.glob(f"{store.read_receipt(one).artifacts[0].uri}")
    series.write_text("{}")
    assert call(store, "diff", one, other) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("comparable")
    assert "losses are not compared:" in captured.err


def test_reindex_prints_counts(store: Store, capsys: Capture) -> None:
    store.write_receipt(make_body())
    store.write_decision(make_decision())
    assert call(store, "reindex") == 0
    assert capsys.readouterr().out == (
        f"receipts 1, decisions 1, unreadable 0: indexed in {store.root}/index.sqlite\n"
    )
    assert call(store, "reindex", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_receipts"] == 1


def test_reindex_removes_what_a_killed_writer_left_days_ago(store: Store, capsys: Capture) -> None:
    _, location = store.write_receipt(make_body())
    old, young = (Path(location).with_name(f".r.json.{digit * 16}.tmp") for digit in "ab")
    for path in (old, young):
        path.write_bytes(b"{")
    os.utime(old, (1e9, 1e9))
    assert call(store, "reindex") == 0
    assert "removed 1 temporary file that killed writers left" in capsys.readouterr().out
    assert (old.exists(), young.exists()) == (False, True)
    assert call(store, "reindex", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_abandoned"] == 0


def test_help_imports_neither_torch_nor_the_store() -> None:
    code = (
        "import sys\n"
        "from lanewise.cli.main import run\n"
        "run(['receipt', '--help'])\n"
        "heavy = {'torch', 'fsspec', 'numpy', 'lanewise.receipts.store'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_show_a_view_in_words_and_as_json(store: Store, capsys: Capture) -> None:
    receipt_id, _ = store.write_receipt(make_body(), steps=make_steps())
    assert call(store, "show", short(receipt_id), "--view", "goodput") == 0
    out = capsys.readouterr().out
    assert "goodput_ratio" in out
    assert "training_prep" in out
    assert call(store, "show", short(receipt_id), "--view", "goodput", "--json") == 0
    assert json.loads(capsys.readouterr().out)["wall_duration_seconds"] == 4.5


def test_a_view_with_a_base_compares_or_refuses(store: Store, capsys: Capture) -> None:
    run_id, _ = store.write_receipt(make_body(), steps=make_steps())
    base = {"experiment.arm": "A", "features.0.effective": "off"}
    base_id, _ = store.write_receipt(make_body(base), steps=make_steps(seconds=0.2))
    other_id, _ = store.write_receipt(make_body({**base, "data_digest": sha("other")}))
    words = ["show", short(run_id), "--view", "optimization", "--json"]
    assert call(store, *words, "--base", short(base_id)) == 0
    delta = json.loads(capsys.readouterr().out)["delta"]
    assert delta["tokens_per_second_change_ratio"] == pytest.approx(1.0)
    assert call(store, *words, "--base", short(other_id)) == 3
    assert "they differ in data_digest" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    "words",
    [
        ["--view", "nonsense"],
        ["--view", "goodput", "--base", "abc"],
        ["--view", "goodput", "--may-differ", "fused_moe"],
        ["--base", "abc"],
    ],
)
def test_views_that_cannot_be_are_refused(store: Store, words: list[str], capsys: Capture) -> None:
    receipt_id, _ = store.write_receipt(make_body())
    assert call(store, "show", short(receipt_id), *words) == 2
    one_line(capsys.readouterr().err)


def test_list_finds_a_failure_by_its_family(store: Store, capsys: Capture) -> None:
    store.write_receipt(make_body())
    failed = {"outcome.validity": "invalid", "outcome.failure_family": "out_of_memory"}
    receipt_id, _ = store.write_receipt(make_body(failed))
    assert call(store, "list", "--failure", "out_of_memory") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [short(receipt_id)]
    assert lines[1].split()[-1] == "out_of_memory"
    assert call(store, "list", "--failure", "bad_luck") == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lane.spec.seed": 1}, "seeds differ (seed 0 and 1)"),
        ({"lane.spec.data": {"seed": 4}}, "seeds differ (data.seed None and 4)"),
        ({"data_digest": sha("other data")}, "they read other data"),
    ],
)
def test_losses_of_unmatched_starts_are_not_compared(
    store: Store, changes: dict[str, object], said: str, capsys: Capture
) -> None:
    a, _ = store.write_receipt(make_body(), steps=make_steps())
    b, _ = store.write_receipt(make_body(changes), steps=make_steps())
    assert call(store, "diff", short(a), short(b)) == 0
    out = capsys.readouterr().out
    assert f"losses are not compared: {said}" in out
    assert "loss after" not in out
    assert call(store, "diff", short(a), short(b), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["losses"] is None
    assert document["losses_not_compared"] == [said]
