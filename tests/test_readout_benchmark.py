"""The account of what lies between two steps adds up on a CPU; on a GPU it has more pieces."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import readout

SMALL = [
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.mlp.mlp_hidden_size=32",
    "batch.sequence_length=16",
    "batch.micro_batch_size=2",
]


def account(tmp_path: Path, device: str) -> dict[str, dict[str, dict[str, float]]]:
    path = tmp_path / "readout.json"
    settings = [part for override in SMALL for part in ("--set", override)]
    arguments = ["dense-tiny", "--device", device, "--warmup", "2", "--steps", "5"]
    assert readout.main([*arguments, *settings, "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    return {
        part: {row["piece"]: row for row in document[part]}
        for part in ("step", "once", "alternatives")
    }


def test_pieces_and_what_none_of_them_names_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = account(tmp_path, "cpu")
    rows = found["step"]
    whole = rows[readout.BETWEEN]["mean"]
    parts = [
        row["mean"]
        for name, row in rows.items()
        if name not in (readout.BETWEEN, readout.TIMED_STEP)
    ]
    assert sum(parts) == pytest.approx(whole)
    assert {"gradient norm", "writing the step down", "number of graphs"} <= set(rows)
    assert rows["gradient norm"]["mean"] > 0
    assert set(found["once"]) == {"once: meters of the device", "once: counters of the host"}
    assert found["alternatives"] == {}
    assert "between two steps" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_events_and_counters_are_pieces_too(tmp_path: Path) -> None:
    found = account(tmp_path, "cuda")
    assert {"event at the start", "event at the end", "allocator counters"} <= set(found["step"])
    assert readout.EVENTS_LESS_WALL in found["step"]
    assert "a new event, recorded" in found["alternatives"]
