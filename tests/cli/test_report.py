"""`lanewise report` as a person types it."""

import json
from pathlib import Path

import pytest

from lanewise.cli.main import run
from lanewise.receipts.store import Store
from tests.dash.fixture_campaign import CASES, build_campaign


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def only_report(store: Store) -> Path:
    (path,) = (Path(store.root) / "reports").iterdir()
    return path


def test_table_and_path_are_printed_plainly(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    build_campaign(store, cases=CASES[:2])
    assert run(["report", "--store", store.root]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("lanewise 0.1.0 · cpu-x86_64-2c")
    assert any(line.startswith("fused_mamba") and line.endswith("default on") for line in lines)
    assert lines[-1].endswith(
        f"12 receipts, 2 decisions in {store.root} · report: {only_report(store)}"
    )
    assert "\x1b" not in out


def test_the_newest_campaign_is_the_default(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    build_campaign(
        store, cases=CASES[-1:], campaign_id="b-old", changes={"created_at": "2026-01-01T00:00:00Z"}
    )
    build_campaign(
        store, cases=CASES[-1:], campaign_id="a-new", changes={"created_at": "2026-02-01T00:00:00Z"}
    )
    assert run(["report", "--store", store.root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["campaign"]["campaign_id"] == "a-new"
    assert run(["report", "b-old", "--store", store.root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["campaign"]["campaign_id"] == "b-old"


def test_json_holds_campaign_decisions_and_report(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = build_campaign(store, cases=CASES[:2])
    assert run(["report", "--store", store.root, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["campaign"]["campaign_id"] == campaign.campaign_id
    assert [d["feature"] for d in document["decisions"]] == ["fused_mamba", "fused_recurrent"]
    assert document["report"] == str(only_report(store))


def test_final_passes_a_complete_campaign(store: Store) -> None:
    build_campaign(store, cases=CASES[:1])
    assert run(["report", "--store", store.root, "--final"]) == 0


def test_final_refuses_missing_blocks_by_name(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = {"planned_blocks": 3, "visits": 6, "estimated_seconds": 24.0}
    features = [{"feature": f, **planned} for f in ("fused_mamba", "fused_moe")]
    build_campaign(store, cases=CASES[:1], changes={"status": "INCOMPLETE", "features": features})
    assert run(["report", "--store", store.root, "--final"]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "fused_moe: no decision, 0 of 3 blocks" in error
    assert "`lanewise ablate nam56r-tiny --resume 2026-11-23-nam56r-tiny-7`" in error
    assert not (Path(store.root) / "reports").exists()


def test_without_final_an_incomplete_campaign_is_reported_as_such(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    build_campaign(store, cases=CASES[:1], changes={"status": "INCOMPLETE"})
    assert run(["report", "--store", store.root]) == 0
    assert "INCOMPLETE: the campaign is INCOMPLETE. Finish with" in capsys.readouterr().out
    assert "not final" in only_report(store).read_text(encoding="utf-8")


def test_an_empty_store_says_what_to_do(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "--store", store.root]) == 2
    assert "run `lanewise ablate nam56r-tiny` first" in capsys.readouterr().err


def test_an_unknown_campaign_is_one_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    build_campaign(store, cases=CASES[-1:])
    assert run(["report", "nothing-here", "--store", store.root]) == 3
    assert "nothing-here" in capsys.readouterr().err


def test_damaged_campaigns_are_passed_over_while_there_is_another(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(store.root) / "campaigns" / "damaged" / "campaign.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{", encoding="utf-8")
    assert run(["report", "--store", store.root]) == 3
    assert "truncated" in capsys.readouterr().err
    build_campaign(store, cases=CASES[-1:])
    assert run(["report", "--store", store.root]) == 0


def test_open_shows_the_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(shown.append(address)) or True)
    build_campaign(store, cases=CASES[-1:])
    assert run(["report", "--store", store.root, "--open"]) == 0
    assert shown == [only_report(store).as_uri()]


def test_open_without_a_browser_names_the_file(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda _address: False)
    build_campaign(store, cases=CASES[-1:])
    assert run(["report", "--store", store.root, "--open"]) == 2
    assert str(only_report(store)) in capsys.readouterr().err
