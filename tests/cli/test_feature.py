import json

import pytest

from lanewise.cli.main import run
from lanewise.lane.families import FAMILIES
from lanewise.lane.features import FEATURES


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_prints_the_articles_table_then_ours(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "feature", "list")
    assert code == 0
    lines = [line.split("  ") for line in out.splitlines()]
    printed = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert printed[0] == ["Feature family", "Speed role", "Default stance"]
    assert printed[1:8] == [
        [family.title, family.speed_role, family.default_stance] for family in FAMILIES
    ]
    assert printed[8] == []
    assert [row[0] for row in printed[10:]] == [feature.key for feature in FEATURES]


def test_list_as_json_holds_role_control_and_stance(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "feature", "list", "--json")
    document = json.loads(out)
    assert len(document["families"]) == 7
    by_key = {feature["key"]: feature for feature in document["features"]}
    assert by_key["fused_mamba"]["control"] == {
        "cpu": "recurrence.torch",
        "cuda": "recurrence.torch",
    }
    assert by_key["fused_optimizer"]["control"] == {
        "cpu": "per_tensor.torch",
        "cuda": "foreach.torch",
    }
    assert "slow reference" in by_key["fused_mamba"]["control_notes"]["cuda"]
    assert by_key["fused_mamba"]["letters"] == ["M"]
    assert by_key["extra_aux_losses"]["tax_budget_ratio"] == 1.01
    assert by_key["fused_mla_projection"]["built"] is False
    assert (by_key["mtp"]["default_state"], by_key["mtp"]["tax_budget_ratio"]) == ("on", 1.2)


@pytest.mark.parametrize("key", [feature.key for feature in FEATURES])
def test_show_works_for_every_feature(capsys: pytest.CaptureFixture[str], key: str) -> None:
    code, out, _ = call(capsys, "feature", "show", key)
    assert code == 0
    assert out.startswith(f"feature  {key} · ")
    _, out, _ = call(capsys, "feature", "show", key, "--json")
    assert json.loads(out)["key"] == key


def test_an_unknown_feature_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "feature", "show", "fused_mo") == (
        2,
        "",
        "error: no feature 'fused_mo'. Did you mean 'fused_moe'? "
        "`lanewise feature list` shows all.  (exit 2)\n",
    )
