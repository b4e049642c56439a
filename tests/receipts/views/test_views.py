"""Each view against a receipt written by hand, with numbers worked out here."""

import math
from typing import Any

import pytest

from lanewise.errors import ReceiptError
from lanewise.measure.ranks import RankReading, fold_ranks
from lanewise.receipts.extension_keys import KERNELS_KEY, LAYER_LOSSES_KEY, LOSS_PARTS_KEY
from lanewise.receipts.schema import StepSeries
from lanewise.receipts.views.attention_backend import attention_backend
from lanewise.receipts.views.base import Source, layers_of
from lanewise.receipts.views.compile_runtime import compile_runtime
from lanewise.receipts.views.expert_routing import expert_routing
from lanewise.receipts.views.failure import failure
from lanewise.receipts.views.goodput import goodput
from lanewise.receipts.views.gpu_profile import gpu_profile
from lanewise.receipts.views.moe_losses import moe_losses
from lanewise.receipts.views.optimization import optimization
from lanewise.receipts.views.utilization import utilization
from lanewise.receipts.warmup_policy import FORMER_NAMES, WarmupPolicy
from tests.receipts.factory import make_receipt, make_steps, sha

TOKENS_PER_STEP = 64 * 8


def steps_of(seconds: list[float]) -> StepSeries:
    count = len(seconds)
    return StepSeries(
        step=tuple(range(count)),
        start_seconds=tuple(float(n) for n in range(count)),
        duration_seconds=tuple(seconds),
        data_wait_seconds=(0.0,) * count,
        loss=(5.0,) * count,
        grad_norm=(1.0,) * count,
    )


def control(**more: Any) -> dict[str, Any]:
    return {
        "experiment.arm": "A",
        "features.0.effective": "off",
        "memory.peak_allocated_bytes": 150_000_000,
        **more,
    }


def test_optimization_compares_the_steps_after_the_longer_warmup() -> None:
    # Warm-ups of 3 and 4: steps 4 and 5 count in both, means 0.2 s and 0.4 s.
    run, base = make_receipt(), make_receipt(control(**{"timing.warmup.steps": 4}))
    view = optimization(
        Source(
            receipt=run,
            steps=steps_of([9, 9, 9, 9, 0.1, 0.3, 0.7]),
            base=base,
            base_steps=steps_of([9, 9, 9, 9, 0.3, 0.5]),
        )
    )
    assert view.tokens_per_second == 5120.0
    assert view.peak_memory_bytes == 120_000_000
    delta = view.delta
    assert delta is not None
    assert delta.tokens_per_second_delta == pytest.approx(TOKENS_PER_STEP * (1 / 0.2 - 1 / 0.4))
    assert delta.tokens_per_second_change_ratio == pytest.approx(1.0)
    assert delta.peak_memory_delta_bytes == -30_000_000
    assert (delta.condition.warmup_steps, delta.condition.num_steps) == (4, 2)
    assert delta.condition.differing_features == ("fused_moe: off → on",)
    assert delta.base_receipt_id == base.receipt_id


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lane.digest": sha("other lane")}, "lane.digest"),
        ({"machine.class_digest": sha("other class")}, "machine.class_digest"),
        ({"data_digest": sha("other data")}, "data_digest"),
        ({"features.1.effective": "off"}, "features.fused_mamba.effective (off ≠ on)"),
    ],
)
@pytest.mark.parametrize("build", [optimization, gpu_profile])
def test_what_cannot_be_compared_is_refused_by_name(
    build: Any, changes: dict[str, Any], named: str
) -> None:
    base = make_receipt(control(**changes))
    source = Source(receipt=make_receipt(), steps=make_steps(), base=base, base_steps=make_steps())
    with pytest.raises(ReceiptError) as caught:
        build(source)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_declared_feature_may_differ() -> None:
    base = make_receipt(control(**{"features.1.effective": "off"}))
    view = optimization(
        Source(
            receipt=make_receipt(),
            steps=make_steps(),
            base=base,
            base_steps=make_steps(),
            may_differ=("fused_mamba",),
        )
    )
    assert view.delta is not None
    assert view.delta.tokens_per_second_change_ratio == 0.0


def test_without_step_series_only_equal_windows_are_compared() -> None:
    same = make_receipt(control(**{"timing.step_duration_seconds.mean": 0.202}))
    view = gpu_profile(Source(receipt=make_receipt(), base=same))
    assert view.comparison is not None
    assert view.comparison.speedup_ratio == pytest.approx(2.0)
    other = make_receipt(control(**{"timing.step_duration_seconds.count": 19}))
    with pytest.raises(ReceiptError, match=r"timing\.step_duration_seconds\.count differ \(3, 20"):
        gpu_profile(Source(receipt=make_receipt(), base=other))


def test_no_step_left_is_refused() -> None:
    base = make_receipt(control(**{"timing.warmup.steps": 6}))
    short_run = steps_of([0.1] * 6)
    with pytest.raises(ReceiptError, match="no step is left after the longer warm-up of 6 steps"):
        optimization(
            Source(receipt=make_receipt(), steps=short_run, base=base, base_steps=short_run)
        )


def test_gpu_profile_of_a_gpu() -> None:
    attention = {
        "op": "attention_core",
        "requested": ["flash.cuda"],
        "chosen": "flash.cuda",
        "observed": ["flash.cuda"],
        "launches": 60,
        "proof": "kernel_name",
    }
    activity = {"source": "nvml_gpm", "tensor_active_ratio": 0.4, "sm_clock_ratio": 0.9}
    view = gpu_profile(
        Source(
            receipt=make_receipt(
                {
                    "backends": [attention],
                    "environment.device_model": "NVIDIA H100 80GB HBM3",
                    "flops.tensor_activity": activity,
                    "telemetry.sm_clock_hertz": 1.98e9,
                    "telemetry.power_watts": 512.0,
                }
            )
        )
    )
    assert view.attention_requested == view.attention_observed == ("flash.cuda",)
    assert view.elapsed_seconds == 2.02
    assert view.device_model == "NVIDIA H100 80GB HBM3"
    assert view.tensor_activity is not None
    assert (view.tensor_activity.tensor_active_ratio, view.power_watts) == (0.4, 512.0)
    assert view.missing == {"comparison": "no --base RECEIPT was given"}


def test_an_alternating_window_is_the_sum_of_its_steps() -> None:
    view = gpu_profile(Source(receipt=make_receipt({"timing.window_duration_seconds": None})))
    assert view.elapsed_seconds == pytest.approx(20 * 0.101)


def test_compile_runtime() -> None:
    compiled = {
        "enabled": True,
        "cache_state": "warm",
        "compile_duration_seconds": 8.5,
        "graph_breaks": 0,
        "recompiles": 1,
        "graph_captures": 2,
        "warmup_policy": "explicit",
    }
    view = compile_runtime(Source(receipt=make_receipt({"compile": compiled})))
    assert view.warmup is not None
    assert view.warmup.is_enabled
    assert (view.warmup.policy, view.cache_state) == (WarmupPolicy.EXPLICIT, "warm")
    assert view.uses_cuda_graphs
    assert (view.device_type, view.has_experts, view.recompiles) == ("cpu", True, 1)
    old = make_receipt({"compile": {**compiled, "warmup_policy": None}, "schema_version": "1.1.0"})
    unknown = compile_runtime(Source(receipt=old))
    assert unknown.warmup is None
    assert "1.2.0 brought it" in unknown.missing["warmup"]


def test_both_former_vocabularies_map_to_one_policy() -> None:
    assert len(FORMER_NAMES) == 4 + 5
    enabled = {name for name, policy in FORMER_NAMES.items() if policy.is_enabled}
    assert enabled == {"explicit_cuda_warmup", "explicit_warmup_allowed"}
    assert set(FORMER_NAMES.values()) == set(WarmupPolicy)


def test_attention_backend_is_proven_by_what_ran_alone() -> None:
    def op(name: str, **changes: Any) -> dict[str, Any]:
        return {
            "op": name,
            "requested": ["a.torch"],
            "chosen": "a.torch",
            "observed": ["a.torch"],
            "launches": 2,
            "proof": "counter",
            **changes,
        }

    view = attention_backend(
        Source(
            receipt=make_receipt(
                {
                    "backends": [
                        op("attention_core", proof="kernel_name"),
                        op("mla_ingress", observed=["b.torch"], fallback_reason="a.torch: no"),
                        op("index_topk", observed=[], proof="none", launches=0),
                        op("moe_experts"),
                    ],
                    "extensions": {KERNELS_KEY: {"attention_core": ["flash_fwd_kernel"]}},
                }
            ),
            steps=steps_of([9, 9, 9, 0.1, 0.4]),
        )
    )
    assert [(o.op, o.is_proven) for o in view.ops] == [
        ("attention_core", True),
        ("mla_ingress", False),
        ("index_topk", False),
    ]
    assert view.all_proven is False
    assert [o.kernels for o in view.ops] == [("flash_fwd_kernel",), (), ()]
    assert view.missing["ops.mla_ingress.kernels"].startswith("the launch counter")
    assert view.missing["ops.index_topk.kernels"] == "the op never ran"
    assert view.tokens_per_second_min == pytest.approx(TOKENS_PER_STEP / 0.4)
    assert view.tokens_per_second_max == pytest.approx(TOKENS_PER_STEP / 0.1)
    assert (view.loss_first, view.loss_last, view.num_params) == (5.55, 4.1, 1_900_000)


def moe_receipt(extensions: dict[str, Any], **coefficients: float) -> Source:
    return Source(
        receipt=make_receipt(
            {
                "lane.layer_pattern": "AEM",
                "lane.num_layers": 6,
                "lane.spec.model.moe": coefficients,
                "extensions": extensions,
            }
        )
    )


def summary(last: float | None, mean: float | None = 1.0) -> dict[str, float | None]:
    return {"first": 0.0, "last": last, "mean": mean}


def test_moe_losses_by_layer_before_and_after_their_weights() -> None:
    view = moe_losses(
        moe_receipt(
            {
                LAYER_LOSSES_KEY: {
                    "load_balance": {"1": summary(0.0002, 0.0003), "4": summary(0.0004)},
                    "router_z": {"1": summary(0.05), "4": summary(None)},
                },
                LOSS_PARTS_KEY: {"load_balance": summary(0.0006), "router_z": summary(0.1)},
            },
            aux_loss_coefficient=1e-4,
            z_loss_coefficient=0.0,
        )
    )
    assert [layer.layer for layer in view.layers] == [1, 4]
    assert [layer.aux_loss_last for layer in view.layers] == pytest.approx([2.0, 4.0])
    assert view.layers[0].weighted_aux_loss_mean == 0.0003
    assert view.layers[0].z_loss_last is None
    assert "coefficient is 0" in view.missing["layers.1.z_loss_last"]
    assert view.missing["layers.4.weighted_z_loss_last"] == "not finite"
    assert view.weighted_total_last == pytest.approx(0.1006)


def test_moe_losses_of_a_receipt_with_sums_only() -> None:
    parts = {"load_balance": summary(0.0006), "router_z": summary(0.1)}
    view = moe_losses(moe_receipt({LOSS_PARTS_KEY: parts}, aux_loss_coefficient=1e-4))
    assert view.layers == ()
    assert "sums over layers only" in view.missing["layers"]
    assert view.weighted_aux_loss_last == 0.0006


def test_expert_routing_of_two_ranks() -> None:
    view = expert_routing(
        Source(
            receipt=make_receipt(
                {
                    "lane.layer_pattern": "EM",
                    "lane.num_layers": 4,
                    "routing.expert_picks": [[30, 10, 0, 0], [10, 10, 10, 10]],
                    "routing.expert_ranks": [0, 0, 1, 1],
                    "routing.tokens_between_ranks": [[0, 7], [3, 0]],
                }
            )
        )
    )
    assert [(r.rank, r.num_experts, r.tokens_sent, r.tokens_received) for r in view.ranks] == [
        (0, 2, 7, 3),
        (1, 2, 3, 7),
    ]
    assert [layer.layer for layer in view.layers] == [0, 2]
    assert [layer.max_over_mean_ratio for layer in view.layers] == [3.0, 1.0]
    assert view.num_experts == 4
    assert view.missing == {}


def test_goodput_is_a_partition_that_closes() -> None:
    view = goodput(Source(receipt=make_receipt(), steps=steps_of([0.5, 1.5])))
    assert [part.category for part in view.parts] == ["step", "training_prep", "data_wait", "other"]
    assert math.fsum(part.seconds for part in view.parts) == view.wall_duration_seconds == 4.5
    assert math.fsum(part.wall_ratio or 0.0 for part in view.parts) == pytest.approx(1.0)
    assert (view.gap_seconds, view.other_seconds) == (0.0, 0.25)
    assert (view.num_steps, view.mean_step_seconds) == (2, 1.0)


def test_goodput_of_several_ranks_names_the_slowest() -> None:
    mine = make_receipt().goodput
    assert mine is not None
    other = mine.model_copy(update={"badput_seconds": {**mine.badput_seconds, "data_wait": 0.75}})
    folded = fold_ranks(
        [
            RankReading(goodput=mine, step_seconds=(1.0, 1.0)),
            RankReading(goodput=other, step_seconds=(1.0, 3.0)),
        ]
    )
    receipt = make_receipt({"goodput_by_rank": folded.model_dump(mode="json")})
    view = goodput(Source(receipt=receipt))
    assert (view.num_ranks, view.straggler_ratio) == (2, pytest.approx(4.0 / 3.0))
    parts = {part.category: part for part in view.rank_parts}
    assert list(parts) == ["wall", "step", "training_prep", "data_wait", "other"]
    data = parts["data_wait"]
    assert (data.fastest_seconds, data.slowest_seconds, data.slowest_rank) == (0.25, 0.75, 1)
    alone = goodput(Source(receipt=make_receipt()))
    assert (alone.rank_parts, alone.missing["rank_parts"]) == ((), "a run of one process")


def test_a_receipt_of_absurdly_many_layers_keeps_nobody_busy() -> None:
    receipt = make_receipt({"lane.num_layers": 2**53 - 1})
    assert len(layers_of(receipt, "E")) == 10_000 // 12 * 5 + 2
    far = make_receipt({"routing.expert_ranks": [0, 2**53 - 1]})
    assert [row.rank for row in expert_routing(Source(receipt=far)).ranks] == [0, 2**53 - 1]


def test_goodput_that_does_not_close_shows_the_gap() -> None:
    body = {"goodput.badput_seconds.other": -0.5}
    view = goodput(Source(receipt=make_receipt(body)))
    assert view.gap_seconds == pytest.approx(-0.75)
    assert view.other_seconds == -0.5


def test_utilization_sets_three_numerators_against_every_ceiling() -> None:
    view = utilization(
        Source(
            receipt=make_receipt(
                {
                    "flops.peak_flops_per_second": 200e9,
                    "flops.peak_source": "a data sheet",
                    "flops.hardware_flops_per_token": 9_900_000.0,
                }
            )
        )
    )
    found = {(u.numerator, u.ceiling): u.ratio for u in view.utilizations}
    rate = 5120.0
    assert found == {
        ("lane", "peak"): pytest.approx(rate * 6.6e6 / 200e9),
        ("lane", "measured_matmul"): pytest.approx(rate * 6.6e6 / 90e9),
        ("hardware", "peak"): pytest.approx(rate * 9.9e6 / 200e9),
        ("hardware", "measured_matmul"): pytest.approx(rate * 9.9e6 / 90e9),
        ("six_n_active", "peak"): pytest.approx(rate * 6.0e6 / 200e9),
        ("six_n_active", "measured_matmul"): pytest.approx(rate * 6.0e6 / 90e9),
    }
    assert view.ceiling is not None
    assert view.ceiling.age_seconds == 3600.0


def test_failure_shows_the_facts_of_its_family_alone() -> None:
    facts = {
        "family": "numerics",
        "step": 7,
        "loss": None,
        "grad_norm": None,
        "last_finite_loss": 9.5,
    }
    view = failure(
        Source(
            receipt=make_receipt(
                {
                    "outcome.status": "aborted",
                    "outcome.validity": "invalid",
                    "outcome.error": "the loss is nan at step 7",
                    "outcome.failure_family": "numerics",
                    "outcome.failure": facts,
                }
            )
        )
    )
    assert view.family == "numerics"
    assert view.facts is not None
    assert view.facts.model_dump(mode="json") == facts
    good = failure(Source(receipt=make_receipt()))
    assert good.missing["facts"] == "nothing failed"
    old = make_receipt({"outcome.validity": "invalid", "schema_version": "1.1.0"})
    assert "1.2.0 brought it" in failure(Source(receipt=old)).missing["family"]
