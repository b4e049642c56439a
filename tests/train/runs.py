"""Requests for micro runs on a small repetitive text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lanewise.lane.schema import Lane
from lanewise.receipts.schema import Experiment
from lanewise.train.request import RunRequest
from tests.models.micro import micro_lane, resolved_micro


def write_text(folder: Path) -> str:
    """A text whose bytes are easy to predict; returns its path."""
    path = folder / "text.txt"
    path.write_text("the lane is the lane and the lane is long. " * 60, encoding="utf-8")
    return str(path)


def micro_request(
    folder: Path, lane: Lane | None = None, *, features: dict[str, str] | None = None, **fields: Any
) -> RunRequest:
    """A request for a micro run with its store below `folder`."""
    return RunRequest(
        **{
            "resolved": resolved_micro(lane or micro_lane(), **(features or {})),
            "store_root": str(folder / "store"),
            "num_threads": 1,
            "steps": 12,
            "data_path": write_text(folder),
            "measure_memory": False,
            **fields,
        }
    )


def experiment() -> Experiment:
    """Arm B of some block."""
    return Experiment(
        campaign_id="2026-11-23-micro-0",
        ablation_id="fused_moe",
        arm="B",
        block=0,
        position=1,
        design="lockstep",
        order_seed=0,
    )
