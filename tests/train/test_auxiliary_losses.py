"""Auxiliary losses of a run: in its steps, its receipt, and the same after a resume."""

import math
from pathlib import Path
from typing import Any

import pytest

from lanewise.lane.schema import Lane
from lanewise.train.extensions import AUXILIARY_KEY, extensions
from lanewise.train.run import Run
from tests.models.micro import micro_lane
from tests.train.runs import micro_request


def lane(**changes: Any) -> Lane:
    return micro_lane(
        **{
            "model__pattern": "A",
            "model__num_layers": 1,
            "model__mtp": {"depth": 2, "mlp_hidden_size": 7},
            "model__stp__start_step": 1,
            **changes,
        }
    )


def test_a_receipt_shows_every_depth_and_stp_before_their_weights(tmp_path: Path) -> None:
    run = Run(micro_request(tmp_path, lane(), features={"stp": "on"}))
    steps = [run.step().auxiliary_losses for _ in range(12)]
    assert [list(losses) for losses in steps[:2]] == [["mtp_1", "mtp_2"], ["mtp_1", "mtp_2", "stp"]]
    receipt = run.finish().receipt
    assert receipt.extensions[AUXILIARY_KEY] == {
        "mtp_1": {"first": steps[0]["mtp_1"], "last": steps[-1]["mtp_1"]},
        "mtp_2": {"first": steps[0]["mtp_2"], "last": steps[-1]["mtp_2"]},
        "stp": {"first": steps[1]["stp"], "last": steps[-1]["stp"]},
    }
    assert steps[0]["mtp_1"] == pytest.approx(math.log(257), rel=0.02)
    assert steps[-1]["mtp_1"] < steps[0]["mtp_1"]


def test_without_auxiliary_losses_nothing_is_said(tmp_path: Path) -> None:
    run = Run(micro_request(tmp_path, lane(), features={"mtp": "off"}))
    assert run.step().auxiliary_losses == {}
    assert AUXILIARY_KEY not in run.finish().receipt.extensions


def test_a_loss_that_is_not_finite_is_null() -> None:
    found = extensions(
        lane().model,
        host_allocator="",
        auxiliary_losses={"mtp_1": [1.0, math.nan]},
        routing_ids_digest=None,
    )
    assert found[AUXILIARY_KEY] == {"mtp_1": {"first": 1.0, "last": None}}


def test_a_resumed_run_sees_the_spans_it_would_have_seen(tmp_path: Path) -> None:
    request: dict[str, Any] = {"features": {"stp": "on"}}
    straight = Run(micro_request(tmp_path, lane(), **request))
    expected = [straight.step().auxiliary_losses for _ in range(6)]
    folder = str(tmp_path / "c")
    first = Run(micro_request(tmp_path, lane(), checkpoint_dir=folder, **request))
    found = [first.step().auxiliary_losses for _ in range(3)]
    first.save_checkpoint()
    again = Run(micro_request(tmp_path, lane(), checkpoint_dir=folder, resume=True, **request))
    found += [again.step().auxiliary_losses for _ in range(3)]
    assert found == expected
