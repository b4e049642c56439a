"""Runs of sparse lanes from request to receipt."""

from pathlib import Path

import pytest
import torch

from lanewise.errors import UsageError
from lanewise.receipts.store import Store
from lanewise.train.extensions import INDEX_LAYERS_KEY, INITIAL_WEIGHTS_KEY
from lanewise.train.run import Run
from tests.models.micro import sparse_lane
from tests.train.runs import micro_request


def test_a_sparse_run_observes_its_ops_and_names_promoted_layers(tmp_path: Path) -> None:
    lane = sparse_lane(full_ranks=(1,))
    run = Run(micro_request(tmp_path, lane))
    results = [run.step() for _ in range(3)]
    receipt = run.finish().receipt
    checks = {check.name: check for check in receipt.outcome.checks}
    assert checks["observed_backends"].ok, checks["observed_backends"].detail
    assert {"index_topk", "sparse_attention", "indexer_loss"} <= {b.op for b in receipt.backends}
    assert all(result.loss > 0 for result in results)
    assert receipt.extensions[INDEX_LAYERS_KEY] == {
        "computed": [1, 2],
        "reused": [3],
        "promoted": [1],
    }
    (stored,) = Store(str(tmp_path / "store")).iter_receipts()
    assert stored.extensions == receipt.extensions


def test_the_dense_warmup_moves_the_indexers_alone(tmp_path: Path) -> None:
    lane = sparse_lane(
        stage="dense_warmup", model__pattern="AAAE", layer_ranks=(1, 2), full_ranks=(0, 1)
    )
    run = Run(micro_request(tmp_path, lane))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    for _ in range(2):
        result = run.step()
    assert result.grad_norm is not None
    assert result.grad_norm > 0
    moved = {
        name
        for name, value in run.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {name for name in before if ".indexer." in name}
    checks = {check.name: check for check in run.finish().receipt.outcome.checks}
    assert checks["observed_backends"].ok, checks["observed_backends"].detail


def test_a_lane_without_sparse_layers_says_nothing_of_an_index(tmp_path: Path) -> None:
    run = Run(micro_request(tmp_path))
    run.step()
    assert INDEX_LAYERS_KEY not in run.finish().receipt.extensions


def test_a_dense_warmup_goes_on_as_sparse_training(tmp_path: Path) -> None:
    lanes = {
        stage: sparse_lane(stage=stage, model__pattern="AAAE", layer_ranks=(1, 2), full_ranks=(0,))
        for stage in ("dense_warmup", "sparse")
    }
    folder = str(tmp_path / "warmup")
    warmup = Run(micro_request(tmp_path, lanes["dense_warmup"], checkpoint_dir=folder))
    for _ in range(2):
        warmup.step()
    warmup.save_checkpoint()
    sparse = Run(micro_request(tmp_path, lanes["sparse"], init_from=folder))
    for name, value in warmup.model.state_dict().items():
        assert torch.equal(sparse.model.state_dict()[name], value), name
    assert sparse.next_step == 0
    sparse.step()
    digest = warmup.request.resolved.digest
    assert sparse.finish().receipt.extensions[INITIAL_WEIGHTS_KEY] == {
        "lane_digest": digest,
        "step": 2,
    }


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = str(tmp_path / "c")
    other = Run(
        micro_request(
            tmp_path, sparse_lane(model__pattern="AE", layer_ranks=(1,)), checkpoint_dir=folder
        )
    )
    other.save_checkpoint()
    with pytest.raises(UsageError, match=r"step-00000000 cannot be read: .*Missing key"):
        Run(micro_request(tmp_path, init_from=folder))
