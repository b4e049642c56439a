"""`lanewise graduate`, and that `train` and `lane show` follow the ledger it writes."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from lanewise.cli.main import run
from lanewise.lane.config import load_config
from lanewise.receipts.store import Store
from tests.lab.graduating import DAYS, campaign

TORCH = importlib.metadata.version("torch")
SMALL = ("batch.micro_batch_size=1", "batch.sequence_length=40")


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = run([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days on which fused_moe was slower on a small lane, with the torch that is installed."""
    root = tmp_path_factory.mktemp("evidence")
    versions = {f"moe_experts={name}.torch": {"torch": TORCH} for name in ("padded", "sorted")}
    for day in DAYS[:2]:
        campaign(root, day=day, ratio=1.3, lane=SMALL, body={"backend_versions": versions})
    return root


def test_rules_are_printed_with_what_shows_them_and_the_ledger_is_written(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "ledger.toml"
    words = ["graduate", "--store", str(evidence), "--ledger", str(ledger)]
    assert run([*words, "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert "would become:\n# ---- written by" in dry
    assert not ledger.exists()
    assert run(words) == 0
    out = capsys.readouterr().out
    assert "fused_moe · nam56r-tiny · cpu-x86_64-2c  GRADUATED: off since 2026-11-11" in out
    for rule in ("pass  R1", "n/a   R2", "pass  R3", "pass  R4", "pass  R5"):
        assert rule in out
    assert "[receipt " in out
    assert f"{ledger}: written" in out
    assert ledger.read_text(encoding="utf-8") in dry
    assert run(words) == 0
    assert f"{ledger}: unchanged" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    elsewhere = ["graduate", "--store", str(tmp_path / "empty"), "--ledger", str(ledger)]
    assert run(elsewhere) == 0
    assert "kept unseen: fused_moe = off on nam56r-tiny" in capsys.readouterr().out


def test_show_prints_entries_with_evidence_age_and_standing(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = str(tmp_path / "ledger.toml")
    run(["graduate", "--store", str(evidence), "--ledger", ledger])
    capsys.readouterr()
    code, shown = answer(capsys, "graduate", "--show", "--ledger", ledger)
    assert code == 0
    (entry,) = shown["entries"]
    assert (entry["feature"], entry["standing"]) == ("fused_moe", "speaks")
    assert isinstance(entry["age_days"], int)
    assert run(["graduate", "--show", "--ledger", ledger]) == 0
    out = capsys.readouterr().out
    assert "decision:" in out
    assert "single device" in out
    assert run(["graduate", "--show", "--ledger", str(tmp_path / "none.toml")]) == 2


def test_exit_codes_and_what_they_mean(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "one"
    campaign(store, day=DAYS[0])
    code, found = answer(capsys, "graduate", "--store", str(store))
    assert (code, found["cases"][0]["result"]) == (4, "held")
    (receipt, *_) = (store / "receipts").rglob("*[0-9a-f].json")
    receipt.unlink()
    code, found = answer(capsys, "graduate", "--store", str(store))
    assert code == 3
    (case,) = found["cases"]
    (decision,) = case["decisions"]
    assert case["result"] == "refused"
    assert len(decision["missing"]) == 1
    assert decision["missing"][0].startswith("fused_moe block ")
    assert run(["graduate", "--store", str(tmp_path / "nowhere")]) == 2
    assert run(["graduate", "fused_moo", "--store", str(store)]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'fused_moe'" in error
    assert "Traceback" not in error


def test_several_stores_and_chosen_features(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "other"
    campaign(store, day=DAYS[0], feature="fused_mamba")
    both = ["--store", str(store), "--store", str(evidence), "--dry-run"]
    _code, found = answer(capsys, "graduate", *both)
    assert [case["feature"] for case in found["cases"]] == ["fused_mamba", "fused_moe"]
    assert found["ledger"] == str(store / "ledger.toml")
    _code, found = answer(capsys, "graduate", "fused_mamba", *both)
    assert [case["feature"] for case in found["cases"]] == ["fused_mamba"]


def test_a_hand_written_line_is_left_to_its_writer(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "ledger.toml"
    ledger.write_text("[speed_defaults]\nfused_moe = true\n", encoding="utf-8")
    words = ["--store", str(evidence), "--ledger", str(ledger)]
    _code, found = answer(capsys, "graduate", *words)
    assert (found["left_to_hand"], found["changed"]) == (["fused_moe"], False)


def test_an_unreadable_ledger_stops_in_one_line(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "ledger.toml"
    ledger.write_text("[speed_defaults\n", encoding="utf-8")
    assert run(["graduate", "--store", str(evidence), "--ledger", str(ledger)]) == 2
    assert run(["lane", "show", "nam56r-tiny", "--ledger", str(ledger)]) == 2
    error = capsys.readouterr().err
    assert error.count("ledger.toml:1") == 2
    assert "Traceback" not in error


def test_a_ledger_that_is_a_link_to_nowhere_is_no_empty_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ledger.toml").symlink_to(tmp_path / "gone.toml")
    assert run(["lane", "show", "nam56r-tiny", "--store", str(tmp_path)]) == 2
    assert "ledger.toml" in capsys.readouterr().err


@pytest.fixture
def written(evidence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store whose ledger says that fused_moe is off on this machine."""
    store = tmp_path / "store"
    store.mkdir()
    run(["graduate", "--store", str(evidence), "--ledger", str(store / "ledger.toml"), "--json"])
    monkeypatch.setattr("lanewise.lane.machine.detect_machine_class", lambda _: "cpu-x86_64-2c")
    return store


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    sets = [word for pair in SMALL for word in ("--set", pair)]
    _code, found = answer(capsys, "lane", "show", "nam56r-tiny", *sets, *words)
    (decision,) = [f for f in found["resolved"]["features"] if f["key"] == "fused_moe"]
    return decision


def test_lane_show_follows_the_ledger_of_the_store(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    store = ["--store", str(written)]
    found = shown(capsys, *store)
    assert (found["state"], found["source"]) == ("off", "ledger_lane")
    assert found["ledger_digest"].startswith("sha256:")
    assert len(found["evidence"]) == 2
    assert shown(capsys, *store, "--no-ledger")["source"] == "stance"
    assert shown(capsys, *store, "--set", "features.fused_moe=on")["source"] == "explicit"
    assert shown(capsys, "--ledger", str(written / "ledger.toml"))["source"] == "ledger_lane"
    config = tmp_path / "config.toml"
    config.write_text("[speed_defaults]\nfused_moe = true\n", encoding="utf-8")
    assert shown(capsys, *store, "--config", str(config))["source"] == "explicit"
    assert run(["lane", "show", "nam56r-tiny", *store, "--no-ledger", "--ledger", "x"]) == 2


def test_lane_show_says_why_evidence_expired(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    monkeypatch.setattr("lanewise.receipts.versions.present_version", lambda name: "9.9.9")
    found = shown(capsys, "--store", str(written))
    assert (found["state"], found["source"]) == ("on", "stance")
    assert found["passed_over"] == f"evidence expired: torch {TORCH} → 9.9.9"
    sets = [word for pair in SMALL for word in ("--set", pair)]
    run(["lane", "show", "nam56r-tiny", "--resolved", *sets, "--store", str(written)])
    assert f"evidence expired: torch {TORCH} → 9.9.9" in capsys.readouterr().out


def test_train_runs_what_the_ledger_says_and_its_receipt_says_so(
    written: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the lane is long and the lane is narrow. " * 60, encoding="utf-8")
    words = ["train", "nam56r-tiny", "--device", "cpu", "--steps", "2", "--data", str(text)]
    words += [word for pair in SMALL for word in ("--set", pair)]
    assert run([*words, "--store", str(written)]) == 0
    (receipt,) = Store(str(written)).iter_receipts()
    record = next(f for f in receipt.features if f.key == "fused_moe")
    assert (record.effective, record.source) == ("off", "ledger_lane")
    assert receipt.ledger is not None
    assert set(receipt.ledger) == {"fused_moe"}
    mark = receipt.ledger["fused_moe"]
    assert mark.digest == load_config(written / "ledger.toml").ledger.digest
    assert len(mark.evidence) == 2
    assert {b.op: b.observed for b in receipt.backends}["moe_experts"] == ("padded.torch",)
