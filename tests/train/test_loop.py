import gc
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lanewise.lane.schema import OptimizerSpec
from lanewise.measure.goodput import GoodputClock
from lanewise.models.model import HybridModel, Loss
from lanewise.train.loop import TrainingLoop, manual_gc
from tests.models.micro import micro_lane, micro_model, random_batch


@dataclass
class Batch:
    tokens: np.ndarray
    targets: np.ndarray
    document_ids: np.ndarray


class Source:
    """Always the same batch; counts how often it was asked."""

    def __init__(self) -> None:
        tokens, targets = random_batch(micro_lane())
        document_ids = np.repeat([[7, 3]], 5, axis=1).repeat(2, axis=0)
        self.batch = Batch(tokens.numpy(), targets.numpy(), document_ids)
        self.asked = 0

    def next(self) -> Batch:
        self.asked += 1
        return self.batch


def ticking() -> object:
    """A clock that moves by a millisecond whenever it is read."""
    return itertools.count(0, 1_000_000).__next__


def loop(
    *,
    spec: OptimizerSpec | None = None,
    accumulation_steps: int = 1,
    measure: bool = True,
    goodput: GoodputClock | None = None,
    gc_interval_steps: int = 50,
    graphs: object = None,
    isolate_documents: bool = False,
    model: HybridModel | None = None,
) -> TrainingLoop:
    model = model or micro_model()
    return TrainingLoop(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.1),
        loader=Source(),
        spec=spec or micro_lane().optimizer,
        accumulation_steps=accumulation_steps,
        goodput=goodput or GoodputClock(),
        measure=measure,
        isolate_documents=isolate_documents,
        graphs_compiled=graphs,  # type: ignore[arg-type]
        clock=ticking(),  # type: ignore[arg-type]
        gc_interval_steps=gc_interval_steps,
    )


def test_a_step_trains_counts_and_reports() -> None:
    training = loop()
    first, second = training.step(), training.step()
    assert (first.step, second.step, training.next_step) == (0, 1, 2)
    assert second.loss < first.loss
    assert first.duration_seconds >= first.data_wait_seconds > 0
    assert first.grad_norm is not None
    assert first.grad_norm > 0
    assert first.expert_load_cv is not None
    assert all(p.grad is None for p in training.model.parameters())


def test_each_micro_batch_is_read_inside_the_step() -> None:
    training = loop(accumulation_steps=3)
    training.step()
    assert training.loader.asked == 3  # type: ignore[attr-defined]


def test_the_rate_of_the_step_is_the_schedule_s() -> None:
    spec = OptimizerSpec(learning_rate=0.4, warmup_steps=4)
    training = loop(spec=spec)
    training.step()
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    training.step()
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_unmeasured_steps_report_neither_norm_nor_load(clip: float) -> None:
    result = loop(measure=False, spec=OptimizerSpec(grad_clip_norm=clip)).step()
    assert result.grad_norm is None
    assert result.expert_load_cv is None


class RecordingModel(HybridModel):
    """Notes the document ids of every micro-batch and computes as if there were none."""

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        *,
        document_ids: torch.Tensor | None = None,
        step: int = 0,
    ) -> Loss:
        self.seen.append(document_ids)
        self.steps.append(step)
        found = super().forward(tokens, targets, step=step)
        return found._replace(unweighted={"seen": torch.tensor(float(len(self.seen)))})


def recording_model() -> RecordingModel:
    model = micro_model()
    model.__class__ = RecordingModel
    model.seen, model.steps = [], []
    return model  # type: ignore[return-value]


def test_the_model_is_told_the_documents_of_every_micro_batch() -> None:
    model = recording_model()
    loop(isolate_documents=True, accumulation_steps=2, model=model).step()
    assert len(model.seen) == 2
    for document_ids in model.seen:
        assert document_ids.dtype == torch.int64
        assert document_ids.tolist() == [[7] * 5 + [3] * 5] * 2


def test_without_isolation_no_documents_are_passed() -> None:
    model = recording_model()
    loop(model=model).step()
    assert model.seen == [None]


def test_the_model_is_told_the_step_of_every_micro_batch() -> None:
    model = recording_model()
    training = loop(model=model, accumulation_steps=2)
    training.next_step = 7  # as after a resume
    training.step()
    training.step()
    assert model.steps == [7, 7, 8, 8]


def test_auxiliary_losses_are_means_over_micro_batches() -> None:
    training = loop(model=recording_model(), accumulation_steps=2)
    seen = [training.step().auxiliary_losses["seen"] for _ in range(2)]
    assert seen == [1.5, 3.5]
    assert loop().step().auxiliary_losses == {}


def test_garbage_is_collected_on_schedule_and_tagged() -> None:
    training = loop(gc_interval_steps=3)
    assert [training.step().tags for _ in range(6)] == [(), (), ("gc",), (), (), ("gc",)]


def test_a_step_that_compiles_is_tagged() -> None:
    readings = iter([5, 5, 5, 7])
    training = loop(graphs=lambda: next(readings))
    assert [training.step().tags for _ in range(2)] == [(), ("compile",)]


def test_a_requested_tag_marks_the_next_step_only() -> None:
    training = loop()
    training.tag_next_step("checkpoint")
    assert [training.step().tags for _ in range(2)] == [("checkpoint",), ()]


def test_the_expert_bias_moves_once_per_optimizer_step() -> None:
    training = loop(accumulation_steps=2)
    training.step()
    moe = training.model.blocks[1]
    rate = moe.spec.bias_update_rate
    assert moe.bias.abs().max().item() == pytest.approx(rate)


def test_an_untimed_step_leaves_goodput_and_the_count_alone() -> None:
    clock = GoodputClock(clock=ticking())  # type: ignore[arg-type]
    training = loop(goodput=clock)
    training.step()
    before = clock.summary()
    training.untimed_step()
    after = clock.summary()
    assert before is not None
    assert after is not None
    assert after.step_seconds == before.step_seconds
    assert training.next_step == 1


def test_manual_gc_stops_the_collector_and_starts_it_again() -> None:
    assert gc.isenabled()
    with manual_gc():
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
