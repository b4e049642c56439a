"""A feature side by side on several lanes, from decisions of one store and of several."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lanewise.cli.main import run
from lanewise.dash.by_lane import HEADERS, by_lane
from lanewise.dash.html import render_by_lane, write_by_lane
from lanewise.errors import UsageError
from lanewise.receipts.store import Store
from tests.receipts.factory import make_decision, sha

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def decide(store: Store, name: str, **changes: object) -> None:
    lane = str(changes.pop("lane_name", "nam56r-tiny"))
    store.write_decision(
        make_decision(
            {
                "decision_id": name,
                "lane.name": lane,
                "lane.digest": sha(lane),
                **{key.replace("__", "."): value for key, value in changes.items()},
            }
        )
    )


@pytest.fixture(name="stores")
def stores_fixture(tmp_path: Path) -> list[Store]:
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    decide(first, "old", created_at="2026-11-01T00:00:00Z", estimate__ratio=0.9)
    decide(first, "new", created_at="2026-11-02T00:00:00Z")
    decide(first, "cut", created_at="2026-11-03T00:00:00Z", status="INCOMPLETE")
    decide(first, "other", feature="fused_mamba")
    decide(second, "new", created_at="2026-11-02T00:00:00Z")
    decide(
        second,
        "wide",
        lane_name="another",
        machine__class_name="h100-sxm-80gb",
        mode="screen",
        peak_memory_bytes={"control": None, "treated": None, "delta": None, "reason": "no"},
        estimate=None,
        verdict="NOT_MEASURED",
    )
    return [first, second]


def test_the_newest_complete_decision_of_every_lane_stands_for_it(stores: list[Store]) -> None:
    table = by_lane(stores, ("fused_moe",))
    assert [(row.lane, row.decision_id, row.num_older) for row in table.rows] == [
        ("another", "wide", 0),
        ("nam56r-tiny", "new", 1),
    ]
    wide, new = table.cells
    assert new == (
        "fused_moe",
        "nam56r-tiny",
        "cpu-x86_64-2c",
        "padded.torch",
        "−31.0 %",
        "[−33.0, −29.0]",
        "FASTER",
        "−11 MiB",
        "1",
        "2026-11-02",
        "new (+1 older)",
    )
    assert wide[2:] == (
        "h100-sxm-80gb",
        "padded.torch",
        "—",
        "—",
        "NOT_MEASURED (screen)",
        "—",
        "1",
        "2026-11-23",
        "wide",
    )


def test_features_keep_the_order_they_were_asked_in(stores: list[Store]) -> None:
    table = by_lane(stores[:1], ("fused_moe", "fused_mamba"))
    assert [row.feature for row in table.rows] == ["fused_moe", "fused_mamba"]


def test_a_feature_nobody_decided_on_is_refused_with_those_that_there_are(
    stores: list[Store],
) -> None:
    with pytest.raises(UsageError, match="decisions there are on fused_mamba, fused_moe") as caught:
        by_lane(stores, ("nonsense",))
    assert "\n" not in str(caught.value)


def test_an_unreadable_decision_is_named_and_the_others_shown(stores: list[Store]) -> None:
    path = Path(stores[0].root) / "decisions" / "other.json"
    path.write_bytes(b'{"schema')
    table = by_lane(stores, ("fused_moe",))
    assert len(table.rows) == 2
    assert "truncated" in table.unreadable[0]


def test_the_page_is_self_contained_and_escapes(stores: list[Store]) -> None:
    decide(stores[0], "odd", lane_name="tag", versus="<script>alert(1)</script>")
    html = render_by_lane(by_lane(stores, ("fused_moe",)), now=NOW)
    assert "<script>alert" not in html
    assert "http" not in html.replace("http://www.w3.org", "")
    for header in HEADERS:
        assert f">{header}</th>" in html
    first = write_by_lane(stores[0].root, by_lane(stores, ("fused_moe",)), now=NOW)
    second = write_by_lane(stores[0].root, by_lane(stores, ("fused_moe",)), now=NOW)
    assert first.endswith("reports/2026-11-24-by-lane-fused_moe.html")
    assert second != first


def test_the_command(stores: list[Store], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", "--by-lane", "fused_moe", "--store", stores[0].root]
    assert run([*words, "--from", stores[1].root, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["lane"] for row in document["rows"]] == ["another", "nam56r-tiny"]
    assert document["rows"][1]["step_time_ratio"] == 0.69
    assert Path(document["report"]).is_file()
    assert run(words) == 0
    out = capsys.readouterr().out
    assert "−31.0 %" in out
    assert "report: " in out
    for wrong in (["report", "--from", "x"], [*words, "some-campaign"], [*words, "--final"]):
        assert run(wrong) == 2
