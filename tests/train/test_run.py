"""A run from request to receipt."""

import itertools
import statistics
from pathlib import Path
from typing import Any

import pytest

from lanewise.errors import DataError, NotBuiltError, UsageError
from lanewise.lane.load import load_lane
from lanewise.receipts.schema import RunReceipt, StepSeries, Warmup
from lanewise.receipts.store import Store
from lanewise.receipts.validate import receipt_file_faults
from lanewise.train.run import Run
from lanewise.train.session import SessionResult, StopRequest, train_to
from tests.models.micro import micro_lane
from tests.train.runs import experiment, micro_request


def train(folder: Path, *, stop_after: int | None = None, **fields: Any) -> SessionResult:
    request = micro_request(folder, **fields)
    stop = StopRequest()

    def on_step(result: Any) -> None:
        if result.step + 1 == stop_after:
            stop.reason = "Ctrl-C"

    assert request.steps is not None
    return train_to(Run(request), request.steps, stop=stop, on_step=on_step)


def stored(folder: Path) -> RunReceipt:
    """The one receipt of the store, read back with its identity checked."""
    (receipt,) = Store(str(folder / "store")).iter_receipts()
    return receipt


def series(folder: Path) -> StepSeries:
    found = Store(str(folder / "store")).read_steps(stored(folder).receipt_id)
    assert found is not None
    return found


def faults(folder: Path) -> list[str]:
    """What `lanewise receipt validate` would say."""
    store = Store(str(folder / "store"))
    (file,) = store.receipt_files()
    return receipt_file_faults(f"{store.root}/{file.name}")


def test_the_tiny_lane_trains_with_mamba_2(tmp_path: Path) -> None:
    sizes = ["batch.micro_batch_size=1", "batch.sequence_length=40"]  # two chunks and a half
    overrides = ["model.mamba.version=mamba2", *sizes]
    train(tmp_path, lane=load_lane("nam56r-tiny", overrides), steps=10)
    receipt = stored(tmp_path)
    assert receipt.outcome.status == "success"
    assert receipt.numerics.losses_finite
    losses = series(tmp_path).loss
    assert losses[-1] < losses[0]
    (feature,) = [f for f in receipt.features if f.key == "fused_mamba"]
    assert feature.effective == feature.requested == "on"
    observed = {record.op: record.observed for record in receipt.backends}
    assert observed["ssd_scan"] == ("chunked.torch",)
    assert "ssm_scan" not in observed


def test_a_run_writes_one_complete_receipt(tmp_path: Path) -> None:
    result = train(tmp_path)
    receipt = stored(tmp_path)
    assert receipt.receipt_id == result.finished.receipt.receipt_id
    assert receipt.outcome.status == "success"
    assert receipt.lane.layer_pattern == "AEMR"
    assert receipt.throughput.tokens_real == 12 * 2 * 10
    assert receipt.numerics.losses_finite
    assert receipt.routing is not None
    assert receipt.routing.dropped_ratio == 0.0
    assert receipt.data.unigram_entropy_nats is not None
    checks = {check.name: check.ok for check in receipt.outcome.checks}
    del checks["steady_state"]  # twelve microscopic steps on a busy machine may or may not settle
    assert all(checks.values()), checks
    assert faults(tmp_path) == []


def test_every_op_is_observed_as_asked(tmp_path: Path) -> None:
    train(tmp_path, features={"fused_moe": "off"})
    backends = {record.op: record for record in stored(tmp_path).backends}
    assert set(backends) == {
        "add_norm", "mla_ingress", "attention_core", "moe_experts", "ssm_scan", "m2rnn_scan",
        "linear_cross_entropy", "optimizer_step",
    }  # fmt: skip
    assert (
        backends["moe_experts"].requested == backends["moe_experts"].observed == ("padded.torch",)
    )
    assert backends["moe_experts"].launches == 12
    assert backends["add_norm"].launches == 12 * 5
    assert backends["optimizer_step"].launches == 12
    features = {f.key: (f.requested, f.effective) for f in stored(tmp_path).features}
    assert features["fused_moe"] == ("off", "off")
    assert features["fused_mamba"] == ("on", "on")


@pytest.mark.parametrize("state", ["on", "off"])
def test_a_mimo_run_observes_the_scan_it_runs(tmp_path: Path, state: str) -> None:
    lane = micro_lane(model__mamba__mimo_rank=2, model__mamba__output_norm=True)
    train(tmp_path, lane=lane, features={"fused_mamba": state}, steps=3)
    receipt = stored(tmp_path)
    backends = {record.op: record.observed for record in receipt.backends}
    assert "ssm_scan" not in backends
    assert backends["mimo_scan"] == ({"on": "chunked.torch", "off": "recurrence.torch"}[state],)
    features = {f.key: (f.requested, f.effective) for f in receipt.features}
    assert features["fused_mamba"] == (state, state)
    assert receipt.numerics.losses_finite


def test_the_tiny_lane_trains_with_mimo(tmp_path: Path) -> None:
    lane = load_lane("nam56r-tiny", ["model.mamba.mimo_rank=2", "batch.micro_batch_size=2"])
    train(tmp_path, lane=lane, steps=10)
    losses = series(tmp_path).loss
    assert all(loss is not None and loss < 7 for loss in losses)
    assert losses[-1] is not None
    assert losses[-1] < losses[0]
    assert stored(tmp_path).numerics.grad_norm_finite


def test_goodput_closes_to_wall_time(tmp_path: Path) -> None:
    train(tmp_path)
    goodput = stored(tmp_path).goodput
    assert goodput is not None
    parts = goodput.step_seconds + sum(goodput.badput_seconds.values())
    assert parts == pytest.approx(goodput.wall_duration_seconds, rel=1e-6)
    assert goodput.step_seconds > 0
    assert goodput.badput_seconds["training_prep"] > 0
    assert goodput.badput_seconds["data_wait"] > 0


def test_the_series_has_every_step(tmp_path: Path) -> None:
    train(tmp_path)
    found = series(tmp_path)
    assert found.step == tuple(range(12))
    assert all(value is not None for value in (*found.loss, *found.grad_norm))
    starts = found.start_seconds
    assert all(a < b for a, b in itertools.pairwise(starts))


def test_switched_off_observability_is_null_with_a_reason(tmp_path: Path) -> None:
    off = {"goodput": False, "temporal_perf": False, "measurements": False}
    train(tmp_path, lane=micro_lane(observability=off))
    receipt = stored(tmp_path)
    assert receipt.goodput is None
    assert receipt.artifacts == ()
    assert receipt.numerics.grad_norm_last is None
    assert receipt.memory.peak_allocated_bytes is None
    assert receipt.routing is not None
    assert receipt.routing.expert_load_cv is None
    for path, switch in (
        ("goodput", "goodput"),
        ("numerics.grad_norm_last", "measurements"),
        ("routing.expert_load_cv", "measurements"),
        ("routing.expert_picks", "measurements"),
        ("routing.null_ratio", "measurements"),
        ("memory", "measurements"),
    ):
        assert receipt.missing[path] == f"observability.{switch} is off"
    assert faults(tmp_path) == []


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_the_load_of_the_steady_steps_is_complete(tmp_path: Path, ratio: float) -> None:
    lane = micro_lane(model__pattern="EMER", model__moe__real_slot_ratio=ratio)
    run = Run(micro_request(tmp_path, lane=lane, steps=None, experiment=experiment()))
    for _ in range(5):
        run.step()
    run.finish(warmup=Warmup(rule="given", steps=2, steady=True, reason="given"))
    routing = stored(tmp_path).routing
    assert routing is not None
    assert routing.expert_picks is not None
    assert routing.expert_picks_cv is not None
    assert routing.null_ratio is not None
    picks = 2 * 3 * (2 * 10) * round(2 / ratio)  # E layers × steady steps × tokens × picks
    assert [len(layer) for layer in routing.expert_picks] == [4, 4]
    real = sum(map(sum, routing.expert_picks))
    assert real == pytest.approx(picks * (1 - routing.null_ratio))
    assert (routing.null_ratio > 0) == (ratio < 1)
    for layer, cv in zip(routing.expert_picks, routing.expert_picks_cv, strict=True):
        assert cv == pytest.approx(statistics.pstdev(layer) / statistics.mean(layer))
    assert faults(tmp_path) == []


@pytest.mark.parametrize("mode", ["learned", "forced_balanced"])
def test_the_receipt_names_the_routing_mode(tmp_path: Path, mode: str) -> None:
    train(tmp_path, lane=micro_lane(model__moe__routing_mode=mode), steps=3)
    receipt = stored(tmp_path)
    assert receipt.routing is not None
    assert receipt.routing.mode == receipt.flops.routing_mode == mode


def test_equal_requests_give_equal_losses(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train(tmp_path / name)
    assert series(tmp_path / "a").loss == series(tmp_path / "b").loss


def test_accumulation_sees_as_many_tokens_as_one_large_batch(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    split = micro_lane(batch__micro_batch_size=1, batch__gradient_accumulation_steps=2)
    train(tmp_path / "a", lane=split, steps=3)
    train(tmp_path / "b", lane=micro_lane(), steps=3)
    assert series(tmp_path / "a").loss == pytest.approx(series(tmp_path / "b").loss, rel=1e-4)
    assert stored(tmp_path / "a").throughput.tokens_real == 3 * 20


def test_loss_falls_on_repetitive_text(tmp_path: Path) -> None:
    lane = micro_lane(
        model__hidden_size=24, optimizer__learning_rate=2e-2, batch__micro_batch_size=4
    )
    train(tmp_path, lane=lane, steps=30)
    losses = series(tmp_path).loss
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0] - 2


def test_resumed_run_repeats_the_losses_of_one_that_never_stopped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    train(whole, steps=9)
    checkpoints = str(parts / "checkpoints")
    train(parts, steps=9, stop_after=4, checkpoint_dir=checkpoints)
    run = Run(micro_request(parts, steps=9, checkpoint_dir=checkpoints, resume=True))
    assert run.messages == ["resumed from step-00000004"]
    result = train_to(run, 9, stop=StopRequest(), on_step=lambda _: None)
    resumed = Store(str(parts / "store")).read_steps(result.finished.receipt.receipt_id)
    assert resumed is not None
    assert resumed.step == tuple(range(4, 9))
    assert resumed.loss == series(whole).loss[4:]  # bitwise


def test_measuring_memory_does_not_change_what_a_checkpoint_holds(tmp_path: Path) -> None:
    """The profiled step comes after the last checkpoint, so resuming still repeats the run."""
    checkpoints = str(tmp_path / "checkpoints")
    train(tmp_path, steps=2, checkpoint_dir=checkpoints, measure_memory=True)
    assert stored(tmp_path).memory.peak_allocated_bytes
    run = Run(micro_request(tmp_path, steps=4, checkpoint_dir=checkpoints, resume=True))
    assert run.next_step == 2
    assert len(series(tmp_path).step) == 2


def test_an_interrupted_run_leaves_a_valid_aborted_receipt(tmp_path: Path) -> None:
    result = train(tmp_path, steps=50, stop_after=3, checkpoint_dir=str(tmp_path / "c"))
    receipt = stored(tmp_path)
    assert result.interrupted == "Ctrl-C"
    assert receipt.outcome.status == "aborted"
    assert receipt.outcome.error == "stopped by Ctrl-C after 3 of 50 steps"
    assert series(tmp_path).step == (0, 1, 2)
    assert result.checkpoint is not None
    assert result.checkpoint.name == "step-00000003"
    assert faults(tmp_path) == []


def test_a_run_stopped_before_its_first_step_still_leaves_a_receipt(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.reason = "SIGTERM"
    train_to(Run(micro_request(tmp_path)), 12, stop=stop, on_step=lambda _: None)
    receipt = stored(tmp_path)
    assert receipt.outcome.status == "aborted"
    assert receipt.outcome.validity == "invalid"
    assert receipt.numerics.loss_first is None
    assert faults(tmp_path) == []


def test_a_diverged_run_stops_and_is_invalid(tmp_path: Path) -> None:
    lane = micro_lane(optimizer__learning_rate=1e6, optimizer__grad_clip_norm=0.0)
    result = train(tmp_path, lane=lane, steps=40, checkpoint_dir=str(tmp_path / "c"))
    receipt = stored(tmp_path)
    assert result.diverged is not None
    assert receipt.outcome.status == "aborted"
    assert receipt.outcome.validity == "invalid"
    assert not receipt.numerics.losses_finite
    assert receipt.numerics.loss_last is None
    assert result.checkpoint is None
    assert faults(tmp_path) == []


def test_checkpoints_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    train(tmp_path, steps=5, checkpoint_dir=str(folder), checkpoint_interval_steps=2)
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000004", "step-00000005"]
    assert stored(tmp_path).timing.step_tags["checkpoint"] == 2
    goodput = stored(tmp_path).goodput
    assert goodput is not None
    assert goodput.badput_seconds["checkpoint_save"] > 0


def test_a_finished_checkpoint_leaves_nothing_to_do(tmp_path: Path) -> None:
    train(tmp_path, steps=2, checkpoint_dir=str(tmp_path / "c"))
    with pytest.raises(UsageError, match="nothing is left to do"):
        train(tmp_path, steps=2, checkpoint_dir=str(tmp_path / "c"), resume=True)


def test_other_data_cannot_be_resumed(tmp_path: Path) -> None:
    train(tmp_path, steps=2, checkpoint_dir=str(tmp_path / "c"))
    other = tmp_path / "other.txt"
    other.write_text("something else entirely. " * 40)
    with pytest.raises(DataError, match="cannot resume"):
        Run(
            micro_request(
                tmp_path, checkpoint_dir=str(tmp_path / "c"), resume=True, data_path=str(other)
            )
        )


def test_resume_without_a_checkpoint_starts_and_says_so(tmp_path: Path) -> None:
    run = Run(micro_request(tmp_path, checkpoint_dir=str(tmp_path / "none"), resume=True))
    assert run.next_step == 0
    assert run.messages == ["no checkpoint to resume from; starting at step 0"]


def test_data_with_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vocab_size"):
        Run(micro_request(tmp_path, lane=micro_lane(model__vocab_size=100)))


def test_what_is_not_built_is_refused_by_name(tmp_path: Path) -> None:
    lane = micro_lane(topology__dp_shard=2)
    with pytest.raises(NotBuiltError, match=r"topology dp2 \(2 processes\)"):
        Run(micro_request(tmp_path, lane=lane))


def test_a_run_writes_exactly_one_receipt(tmp_path: Path) -> None:
    run = Run(micro_request(tmp_path))
    run.step()
    run.finish()
    with pytest.raises(RuntimeError, match="exactly one receipt"):
        run.finish()


def test_a_given_warmup_rules_both_record_and_summary(tmp_path: Path) -> None:
    run = Run(micro_request(tmp_path, steps=None, experiment=experiment()))
    for _ in range(10):
        run.step()
    run.finish(warmup=Warmup(rule="given", steps=4, steady=True, reason="the larger of both arms"))
    timing = stored(tmp_path).timing
    assert (timing.warmup.steps, timing.warmup.steady) == (4, True)
    assert timing.step_duration_seconds is not None
    assert timing.step_duration_seconds.count == 6
    assert timing.window_duration_seconds is None  # steps of two arms alternate
    assert faults(tmp_path) == []
