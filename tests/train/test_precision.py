"""bf16 on a CPU: what is computed in it, what stays fp32, and how far the loss may move."""

from pathlib import Path

import pytest
import torch

from lanewise.lane.load import load_lane
from lanewise.models.layers import Block, BlockOutput, must_stay_fp32
from lanewise.models.moe import MixtureOfExperts
from lanewise.models.problems import lane_problems
from lanewise.receipts.schema import RunReceipt
from lanewise.train.run import Run
from tests.models.micro import micro_lane
from tests.train.runs import micro_request

LOSS_BAND_NATS = 0.05
"""How far any of thirty steps may be from fp32 at a rate where training is not chaotic; 0.017 was seen."""
SETTINGS = [("bf16", "fp32"), ("bf16", "bf16"), ("fp32", "bf16")]


def build(folder: Path, compute: str, residual: str, **fields: object) -> Run:
    lane = micro_lane(precision__compute=compute, precision__residual=residual)
    return Run(micro_request(folder, lane, features={"extra_aux_losses": "on"}, **fields))


def tiny_losses(folder: Path, *sets: str) -> tuple[list[float], RunReceipt]:
    folder.mkdir()
    lane = load_lane(
        "nam56r-tiny", ["batch.micro_batch_size=4", "optimizer.learning_rate=1e-3", *sets]
    )
    run = Run(micro_request(folder, lane, data_path=None, steps=30))
    losses = [run.step().loss for _ in range(30)]
    return losses, run.finish().receipt


def test_thirty_steps_stay_in_the_band_of_fp32_and_learn(tmp_path: Path) -> None:
    exact, _ = tiny_losses(tmp_path / "fp32")
    sets = ("precision.compute=bf16", "precision.residual=bf16")
    rounded, receipt = tiny_losses(tmp_path / "bf16", *sets)
    assert rounded != exact
    assert max(abs(a - b) for a, b in zip(rounded, exact, strict=True)) < LOSS_BAND_NATS
    assert rounded[-1] < rounded[0] - 2
    assert receipt.lane.spec["precision"] == {"compute": "bf16", "residual": "bf16"}
    assert receipt.flops.peak_dtype == "bf16"
    assert all(record.observed == (record.chosen,) for record in receipt.backends)


@pytest.mark.parametrize(("compute", "residual"), SETTINGS)
def test_blocks_compute_and_the_stream_carries_in_the_dtypes_asked_for(
    tmp_path: Path, compute: str, residual: str
) -> None:
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    run = build(tmp_path, compute, residual)
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    carried: list[torch.dtype] = []
    logits: list[torch.dtype] = []

    def note(block: Block, inputs: tuple[torch.Tensor], output: BlockOutput) -> None:
        seen.append((inputs[0].dtype, output.delta.dtype))
        assert all(loss.dtype == torch.float32 for loss in output.aux_losses.values())

    add = run.model.residual.add

    def noted_add(
        delta: torch.Tensor, stream: torch.Tensor, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        carried.append(stream.dtype)
        return add(delta, stream, index)

    run.model.residual.add = noted_add  # type: ignore[method-assign]
    for block in run.model.layers:
        block.register_forward_hook(note)  # type: ignore[arg-type]
        if isinstance(block, MixtureOfExperts):
            block.router.register_forward_hook(lambda _m, _i, out: logits.append(out.logits.dtype))
    run.step()
    assert set(seen) == {(dtypes[compute], dtypes[compute])}
    assert set(carried) == {dtypes[residual]}
    assert logits == [torch.float32]


@pytest.mark.parametrize(("compute", "residual"), SETTINGS)
def test_masters_gradients_and_optimizer_states_stay_fp32(
    tmp_path: Path, compute: str, residual: str
) -> None:
    run = build(tmp_path, compute, residual, checkpoint_dir=str(tmp_path / "c"), steps=3)
    loss = run.model(*(torch.zeros(2, 10, dtype=torch.int64),) * 2)
    loss.total.backward()
    assert {loss.total.dtype, loss.cross_entropy.dtype} == {torch.float32}
    assert {part.dtype for part in loss.parts.values()} == {torch.float32}
    assert {p.grad.dtype for p in run.model.parameters() if p.grad is not None} == {torch.float32}
    run.step()
    run.save_checkpoint()
    rest = [run.step().loss for _ in range(2)]

    resumed = build(
        tmp_path, compute, residual, checkpoint_dir=str(tmp_path / "c"), steps=3, resume=True
    )
    assert [resumed.step().loss for _ in range(2)] == rest  # to the bit
    for each in (run, resumed):
        assert {p.dtype for p in each.model.parameters()} == {torch.float32}
        marked = [p for p in each.model.parameters() if must_stay_fp32(p)]
        assert len(marked) > 10
        states = [
            value
            for state in each._optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ]
        assert {value.dtype for value in states} == {torch.float32}


def test_the_problems_of_the_ops_name_the_dtype() -> None:
    lane = micro_lane(precision__compute="bf16", precision__residual="fp32")
    dtypes = {op: problem.dtype for op, problem in lane_problems(lane, "cpu").items()}
    assert dtypes.pop("add_norm") == "fp32"  # the residual stream's
    assert dtypes.pop("optimizer_step") == "fp32"  # the masters'
    assert set(dtypes.values()) == {"bf16"}
