import math
from pathlib import Path

import pytest

from lanewise.receipts.store import Store
from lanewise.receipts.validate import receipt_file_faults
from lanewise.train.loss_record import (
    AUXILIARY_KEY,
    LAYER_LOSSES_KEY,
    LOSS_PARTS_KEY,
    loss_extensions,
)
from lanewise.train.run import Run
from tests.models.micro import micro_lane
from tests.train.runs import micro_request


def test_first_last_and_mean() -> None:
    found = loss_extensions({"stp": [2.0, 1.0]}, {"stp": [0.2, 0.1], "mtp_1": [1.0, math.nan]})
    assert found[AUXILIARY_KEY] == {"stp": {"first": 2.0, "last": 1.0}}
    parts = found[LOSS_PARTS_KEY]
    assert parts["mtp_1"] == {"first": 1.0, "last": None, "mean": None}
    assert parts["stp"]["mean"] is not None
    assert math.isclose(parts["stp"]["mean"], 0.15)


def test_layers_are_grouped_by_loss() -> None:
    found = loss_extensions({}, {}, {(3, "router_z"): [1.0, 3.0], (1, "router_z"): [math.inf]})
    assert found == {
        LAYER_LOSSES_KEY: {
            "router_z": {
                "1": {"first": None, "last": None, "mean": None},
                "3": {"first": 1.0, "last": 3.0, "mean": 2.0},
            }
        }
    }


def test_the_losses_of_layers_add_up_to_the_part(tmp_path: Path) -> None:
    lane = micro_lane(
        model__pattern="EME", model__num_layers=3, batch__gradient_accumulation_steps=2
    )
    run = Run(micro_request(tmp_path, lane, features={"extra_aux_losses": "on"}, steps=2))
    for result in (run.step(), run.step()):
        assert set(result.layer_losses) == {
            (layer, name) for layer in (0, 2) for name in ("load_balance", "router_z")
        }
        for name in ("load_balance", "router_z"):
            total = sum(result.layer_losses[layer, name] for layer in (0, 2))
            assert math.isclose(total, result.loss_parts[name], rel_tol=1e-5)
        assert result.layer_losses[0, "router_z"] != result.layer_losses[2, "router_z"]
    receipt = run.finish().receipt
    layers = receipt.extensions[LAYER_LOSSES_KEY]["router_z"]
    assert layers["2"]["last"] == result.layer_losses[2, "router_z"]


def test_layers_are_read_after_the_step_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the loss ends the step; that of the layers comes after, finds the device idle and is not timed."""
    from lanewise.train import loop

    order: list[str] = []
    ticks = iter(range(0, 10**9, 1000))

    def clock() -> int:
        order.append("clock")
        return next(ticks)

    def noted(name: str) -> None:
        original = getattr(loop, name)
        monkeypatch.setattr(loop, name, lambda losses: (order.append(name), original(losses))[1])

    lane = micro_lane(model__pattern="EME", model__num_layers=3)
    features = {"extra_aux_losses": "on"}
    run = Run(micro_request(tmp_path, lane, features=features, steps=1), clock=clock)
    noted("_read")
    noted("_read_layers")
    order.clear()
    result = run.step()
    assert (order.count("_read"), order.count("_read_layers")) == (1, 1)
    end_of_step = order.index("_read") + 1
    assert order[end_of_step] == "clock"
    assert order.index("_read_layers") > end_of_step
    ticked_before = order[: order.index("_read_layers")].count("clock")
    assert result.duration_seconds * 1e6 < ticked_before, (
        "the step ended before its layers were read"
    )


def test_a_run_without_auxiliary_losses_has_no_entry() -> None:
    assert loss_extensions({}, {}) == {}


def test_every_part_of_the_loss_is_in_the_series_and_in_the_receipt(tmp_path: Path) -> None:
    sparse = {
        "top_k": 4,
        "index_num_heads": 2,
        "index_head_dim": 4,
        "layer_ranks": [0],
        "full_ranks": [0],
    }
    lane = micro_lane(
        model__attention__sparse=sparse,
        model__mtp={"depth": 1, "mlp_hidden_size": 8},
        batch__gradient_accumulation_steps=2,
    )
    features = {"extra_aux_losses": "on", "mtp": "on", "stp": "on"}
    run = Run(micro_request(tmp_path, lane, features=features, steps=3))
    results = [run.step() for _ in range(3)]
    finished = run.finish()
    names = {"load_balance", "router_z", "indexer", "mtp_1", "stp"}
    series = Store(str(tmp_path / "store")).read_steps(finished.receipt.receipt_id)
    assert series is not None
    assert set(series.loss_parts) == names
    for name in names:
        assert series.loss_parts[name] == tuple(result.loss_parts[name] for result in results)
    entry = finished.receipt.extensions[LOSS_PARTS_KEY]
    assert set(entry) == names
    assert entry["router_z"]["last"] == results[-1].loss_parts["router_z"]
    mean = sum(result.loss_parts["mtp_1"] for result in results) / 3
    assert math.isclose(entry["mtp_1"]["mean"], mean)
    weighted, plain = entry["mtp_1"]["first"], finished.receipt.extensions[AUXILIARY_KEY]["mtp_1"]
    assert math.isclose(weighted, 0.3 * plain["first"], rel_tol=1e-5)
    assert receipt_file_faults(finished.location) == []
