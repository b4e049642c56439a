import json
from pathlib import Path

import pytest

from lanewise.cli.main import run


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_names_the_presets_and_own_lanes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "lanes").mkdir()
    (tmp_path / "lanes" / "mine.toml").write_text('# Mine.\nextends = "nam56r-tiny"\n')
    code, out, _ = call(capsys, "lane", "list", "--json")
    assert code == 0
    assert [entry["name"] for entry in json.loads(out)] == [
        "nam56r-tiny",
        "nam56r-tiny-full",
        "dense-tiny",
        "nam52-tiny",
        "nam56r-period",
        "nam56r",
        "nam56r-4096",
        "mine",
    ]
    code, out, _ = call(capsys, "lane", "list")
    assert code == 0
    assert "mine" in out
    assert "lanes/mine.toml" in out


@pytest.mark.parametrize("name", ["nam56r-tiny", "nam56r-period", "nam56r", "nam56r-4096"])
def test_show_works_for_every_preset(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, err = call(capsys, "lane", "show", name, "--machine", "cpu-x86_64-2c")
    assert (code, err) == (0, "")
    assert "AEMEAEMEAEMR tiled over" in out
    assert "sha256:" in out
    assert "lanewise-1" in out
    assert "-cpu-x86_64-2c×" in out
    assert ("ready" in out) == (name in ("nam56r-tiny", "nam56r-period"))


def test_show_prints_the_published_size_of_nam56r(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "lane", "show", "nam56r")
    assert "4.73 G parameters (3.03 G active) · 18.5 GFLOP/token" in out
    assert "lane numerator 18.5 G · hardware 18.4 G · 6·N active 18.2 G" in out
    assert "attention_sparse_own_index, scores of unselected keys have no backward" in out


def test_show_as_json_holds_identity_flops_and_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = call(capsys, "lane", "show", "nam56r", "--json", "--set", "seed=3")
    document = json.loads(out)
    assert document["resolved"]["lane"]["seed"] == 3
    assert document["flops"]["convention"] == "lanewise-1"
    assert document["not_built"] == ["topology dp8 (8 processes)"]


def test_show_resolved_prints_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    from lanewise.lane.compare import flatten
    from lanewise.lane.load import load_lane

    _, out, _ = call(capsys, "lane", "show", "nam56r-tiny", "--resolved")
    lane = load_lane("nam56r-tiny").model_dump(mode="json")
    for path, value in flatten(lane):
        assert f"lane.{path} = {json.dumps(value)}\n" in out
    assert 'op_preferences.ssm_scan = ["chunked.torch"]' in out


def test_show_says_who_decided(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("speed_defaults:\n  fused_mamba: false\n")
    arguments = ("--config", "c.yaml", "--set", "features.fused_moe=off", "--json")
    _, out, _ = call(capsys, "lane", "show", "nam56r-tiny", *arguments)
    decided = {
        item["key"]: (item["state"], item["source"])
        for item in json.loads(out)["resolved"]["features"]
    }
    assert decided["fused_mamba"] == ("off", "explicit")
    assert decided["fused_moe"] == ("off", "explicit")
    assert decided["fused_residual"] == ("on", "stance")


def test_an_unknown_lane_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "lane", "show", "nam56r-tinny") == (
        2,
        "",
        "error: no lane 'nam56r-tinny'. Did you mean 'nam56r-tiny'? "
        "`lanewise lane list` shows all.  (exit 2)\n",
    )


def test_a_machine_nickname_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "lane", "show", "nam56r", "--machine", "h200")
    assert code == 2
    assert err.startswith("error: machine 'h200' is a nickname")


BAD_LANE = (
    'extends = "nam56r-period"\n[model.mamba]\nnum_heads = 56\nnum_groups = 5\n'
    "[model.moe]\ntopk = 3\n"
)


def test_check_prints_every_problem_as_in_the_design(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "my.toml").write_text(BAD_LANE)
    assert call(capsys, "lane", "check", "my.toml") == (
        2,
        "",
        "my.toml:4: model.mamba.num_groups = 5 does not divide num_heads = 56; "
        "use 1, 2, 4, 7, 8, 14, 28 or 56\n"
        "my.toml:6: model.moe.topk: unknown key. Did you mean 'top_k'?  (exit 2)\n",
    )


def test_check_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(BAD_LANE)
    code, out, _ = call(capsys, "lane", "check", "my.toml", "--json")
    assert code == 2
    assert [problem["where"] for problem in json.loads(out)["problems"]] == [
        "my.toml:4",
        "my.toml:6",
    ]
    code, out, _ = call(capsys, "lane", "check", "nam56r-tiny", "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True


def test_check_of_a_good_lane_says_what_train_will_refuse(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = call(capsys, "lane", "check", "nam56r-tiny")
    assert code == 0
    assert out.startswith("ok: nam56r-tiny · nam56r-AEMEAEMEAEMR-d12-cpu-")
    assert "refuse" not in out
    code, out, _ = call(capsys, "lane", "check", "nam56r")
    assert code == 0
    assert "will refuse it" in out


def test_diff_separates_what_decides(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text(
        'extends = "nam56r-tiny"\n[batch]\nmicro_batch_size = 4\n[features]\nfused_moe = "off"\n'
    )
    code, out, _ = call(capsys, "lane", "diff", "nam56r-tiny", "b.toml")
    assert code == 0
    decisive, _, other = out.partition("outside the digest:")
    assert "not comparable: these fields of the lane digest differ" in decisive
    assert "batch.micro_batch_size" in decisive
    assert "features.fused_moe" in other
    _, out, _ = call(capsys, "lane", "diff", "nam56r-tiny", "b.toml", "--json")
    assert json.loads(out)["comparable"] is False
    _, out, _ = call(capsys, "lane", "diff", "nam56r-tiny", "nam56r-tiny")
    assert out == "comparable: the lane digests are equal\n"


def test_show_names_the_layers_that_compute_reuse_and_are_promoted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = call(capsys, "lane", "show", "nam56r")
    assert "index    computed by A ranks 1, 5, 9 · reused by 2, 3, 6, 7, 10, 11\n" in out
    promoted = ("--set", "model.attention.sparse.full_ranks=[3]")
    _, out, _ = call(capsys, "lane", "show", "nam56r", *promoted)
    assert "computed by A ranks 1, 5 · reused by 2, 3, 6, 7, 9, 10, 11 · promoted" in out
    assert "having no earlier one to reuse: 1\n" in out
    _, out, _ = call(capsys, "lane", "show", "nam56r", *promoted, "--json")
    assert json.loads(out)["index_layers"]["promoted"] == [1]
    _, out, _ = call(capsys, "lane", "show", "nam56r-tiny", "--json")
    assert json.loads(out)["index_layers"] is None


def test_show_of_a_gpu_needs_none_and_says_what_it_cannot_know(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    code, out, _ = call(capsys, "lane", "show", "nam56r-tiny", "--device", "cuda", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["resolved"]["device_type"] == "cuda"
    assert "no GPU answers here" in document["notes"][0]
    assert "cannot be known here" in document["notes"][1]
    code, out, _ = call(capsys, "lane", "show", "nam56r-tiny", "--device", "cuda")
    assert "note     no GPU answers here" in out
    code, _, err = call(
        capsys, "lane", "show", "nam56r-tiny", "--device", "cuda", "--machine", "cpu-x86_64-2c"
    )
    assert code == 2
    assert "has no device 'cuda'" in err
