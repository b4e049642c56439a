"""The profiled step of a run: what it says, and that nothing of it is left."""

from pathlib import Path

import pytest

from lanewise.receipts.schema import RunReceipt
from lanewise.receipts.store import Store
from lanewise.receipts.validate import receipt_faults
from lanewise.train.run import Run
from tests.models.micro import micro_lane
from tests.train.runs import micro_request


def trained(folder: Path, **fields: object) -> tuple[Run, RunReceipt]:
    run = Run(micro_request(folder, **{"steps": 3, "measure_memory": True, **fields}))
    for _ in range(3):
        run.step()
    run.finish()
    (receipt,) = Store(str(folder / "store")).iter_receipts()
    return run, receipt


def test_every_op_has_a_share_and_the_shares_fit_into_the_step(tmp_path: Path) -> None:
    run, receipt = trained(tmp_path)
    assert receipt.profile is not None
    ops = receipt.profile.ops
    assert set(ops) == set(run.ops.choices)
    assert all(share.share_ratio > 0 for share in ops.values())
    assert sum(share.share_ratio for share in ops.values()) < 1
    assert {
        name: share.launches for name, share in receipt.profile.blocks.items()
    } == dict.fromkeys("AEMR", 1)
    per_step = {record.op: record.launches // 3 for record in receipt.backends}
    assert {op: share.launches for op, share in ops.items()} == per_step
    # A block holds the op it runs, backward included.
    blocks = receipt.profile.blocks
    assert ops["ssm_scan"].share_ratio < blocks["M"].share_ratio
    assert ops["moe_experts"].share_ratio < blocks["E"].share_ratio
    assert receipt_faults(receipt) == []


def test_nothing_of_the_profiled_step_is_left(tmp_path: Path) -> None:
    run = Run(micro_request(tmp_path, steps=3, measure_memory=True))
    functions = {op: launch.function for op, launch in run.ops._launches.items()}
    blocks = list(run.model.run_block)
    hooks = len(run._optimizer._optimizer_step_pre_hooks)
    for _ in range(3):
        run.step()
    counted = {op: seen.launches for op, seen in run.ops.observed().items()}
    run.finish()
    assert {op: launch.function for op, launch in run.ops._launches.items()} == functions
    assert list(run.model.run_block) == blocks
    assert len(run._optimizer._optimizer_step_pre_hooks) == hooks
    (receipt,) = Store(str(tmp_path / "store")).iter_receipts()
    assert {record.op: record.launches for record in receipt.backends} == counted


def test_recompute_is_seen_as_a_second_launch_of_the_block(tmp_path: Path) -> None:
    lane = micro_lane(recompute__moe="full")
    _run, receipt = trained(tmp_path, lane=lane)
    assert receipt.profile is not None
    assert receipt.profile.blocks["E"].launches == 2
    assert receipt.profile.blocks["M"].launches == 1
    assert receipt.profile.ops["moe_experts"].share_ratio < receipt.profile.blocks["E"].share_ratio


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"measure_memory": False}, "no profiled step was asked for"),
        (
            {"lane": micro_lane(observability__measurements=False)},
            "observability.measurements is off",
        ),
    ],
)
def test_a_run_without_one_says_why(tmp_path: Path, fields: dict[str, object], reason: str) -> None:
    _run, receipt = trained(tmp_path, **fields)
    assert receipt.profile is None
    assert receipt.missing["profile"] == reason


def test_receipts_name_what_their_backends_are_built_of(tmp_path: Path) -> None:
    _run, receipt = trained(tmp_path, measure_memory=False)
    import torch

    asked = {f"{record.op}={record.chosen}" for record in receipt.backends}
    assert receipt.backend_versions is not None
    assert set(receipt.backend_versions) == asked
    scan = receipt.backend_versions["ssm_scan=chunked.torch"]
    assert scan["torch"] == torch.__version__
    # The scan imports the masks of documents, so a change there is a change of the scan.
    assert set(scan) == {"torch", "kernels/ssm_scan_torch.py", "kernels/documents.py"}
