"""`lanewise train` as a person types it."""

import json
from pathlib import Path

import pytest

from lanewise.cli.main import run
from lanewise.receipts.store import Store
from tests.models.micro import MICRO
from tests.train.runs import write_text


@pytest.fixture(name="micro")
def micro_fixture(tmp_path: Path) -> list[str]:
    """Words of a micro training run in its own folder."""
    lane = tmp_path / "micro.toml"
    lines: list[str] = [f'name = "{MICRO["name"]}"']

    def table(path: str, values: dict[str, object]) -> None:
        lines.append(f"[{path}]")
        lines.extend(f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict))
        for key, value in values.items():
            if isinstance(value, dict):
                table(f"{path}.{key}", value)

    for name in ("model", "batch", "optimizer"):
        table(name, MICRO[name])
    lane.write_text("\n".join(lines), encoding="utf-8")
    store, data = str(tmp_path / "store"), write_text(tmp_path)
    return ["train", str(lane), "--store", store, "--data", data, "--threads", "1"]


def test_a_run_ends_with_loss_entropy_speed_and_receipt(
    micro: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*micro, "--steps", "4"]) == 0
    (receipt,) = Store(str(tmp_path / "store")).iter_receipts()
    printed = capsys.readouterr()
    for word in ("loss", "unigram entropy", "speed  ", "goodput", receipt.receipt_id[7:19]):
        assert word in printed.out
    assert "step 4/4" in printed.err


def test_json_is_one_document_on_stdout(
    micro: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*micro, "--steps", "3", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    (receipt,) = Store(str(tmp_path / "store")).iter_receipts()
    assert summary["receipt_id"] == receipt.receipt_id
    assert summary["steps"] == {"first": 0, "next": 3}
    assert summary["loss_last"] == receipt.numerics.loss_last


def test_recorded_routing_is_replayed_to_the_same_loss(
    micro: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "routing")
    assert run([*micro, "--steps", "3", "--json", "--record-routing", folder]) == 0
    recorded = json.loads(capsys.readouterr().out)
    assert run([*micro, "--steps", "3", "--json", "--replay-routing", folder]) == 0
    replayed = json.loads(capsys.readouterr().out)
    assert replayed["loss_last"] == recorded["loss_last"]
    receipt = Store(str(tmp_path / "store")).read_receipt(replayed["receipt_id"])
    assert receipt.flops.routing_mode == "replayed"


def test_checkpoint_and_resume(
    micro: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--checkpoint-dir", str(tmp_path / "c")]
    assert run([*micro, "--steps", "2", *folder]) == 0
    assert run([*micro, "--steps", "4", *folder, "--resume", "--json"]) == 0
    printed = capsys.readouterr()
    assert "resumed from step-00000002" in printed.err
    assert '"first": 2' in printed.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume"], "--checkpoint-dir"),
        (["--checkpoint-every", "5"], "--checkpoint-dir"),
        (["--set", "topology.dp_shard=2"], "topology dp2 (2 processes)"),
        (["--set", "model.moe.topk=2"], "top_k"),
        (["--set", "model.moe.routing_mode=replayed"], "--replay-routing DIR"),
        (["--replay-routing", "/nowhere/at/all"], "holds no recording"),
        (["--set", "features.fused_mla_projection=on"], "fused_mla_projection"),
        (["--set", "ops.ssm_scan=nonsense"], "nonsense"),
        (["--data", "/nowhere/at/all.txt"], "all.txt"),
        (["--set", "batch.sequence_length=100000"], "sequence_length"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    micro: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*micro, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert error.endswith("(exit 2)")


def test_ctrl_c_keeps_a_checkpoint_and_an_aborted_receipt(
    micro: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os
    import signal

    from lanewise.train.run import Run

    step = Run.step

    def step_then_interrupt(self: Run) -> object:
        result = step(self)
        if result.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(Run, "step", step_then_interrupt)
    assert run([*micro, "--steps", "90", "--checkpoint-dir", str(tmp_path / "c")]) == 130
    assert "stopped by Ctrl-C after 3 of 90 steps" in capsys.readouterr().err
    assert (tmp_path / "c" / "step-00000003").is_dir()
    (receipt,) = Store(str(tmp_path / "store")).iter_receipts()
    assert receipt.outcome.status == "aborted"


def test_divergence_exits_3(micro: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["--set", "optimizer.learning_rate=1e6", "--set", "optimizer.grad_clip_norm=0"]
    assert run([*micro, "--steps", "50", *wild]) == 3
    assert "diverged" in capsys.readouterr().err
