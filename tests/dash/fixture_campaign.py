"""A campaign as it comes out of a real run, with every verdict in it, written to a store.

    PYTHONPATH=src:. python -m tests.dash.fixture_campaign /tmp/store     # and look at the report it prints

Step times follow a seeded generator: noise, warm-up, a spike now and then.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lanewise.dash.html import write_report
from lanewise.measure.loss_curve import compare_losses
from lanewise.receipts.decision import CampaignRecord, Decision
from lanewise.receipts.schema import StepSeries
from lanewise.receipts.store import Store
from tests.receipts import factory

NOW = datetime(2026, 11, 23, 10, 4, tzinfo=UTC)
LONG_NAME = "fused_mla_projection_with_absorbed_up_projection"
FULL_STACK_SECONDS = 0.108
NUM_STEPS = 36


@dataclass(frozen=True, kw_only=True)
class Case:
    """One feature of the campaign and how it came out."""

    feature: str
    verdict: str
    ratio: float
    half_width: float
    role: str = "hot_path"
    op: str | None = None
    versus: str = "off"
    observed: str = "on"
    stance: str = "default on"
    reason: str = "the whole interval is below 1 and the effect exceeds the margin"
    memory_mib: float | None = -3.0
    observed_ok: bool = True
    budget: float | None = None
    num_blocks: int = 3
    planned_blocks: int | None = None
    """More than were run, where a look stopped the feature early."""
    compile_seconds: float = 0.0
    status: str = "COMPLETE"
    loss_gain_per_step: float = 0.0
    """How much lower the loss is with the feature on, in nats per step taken."""


CASES: tuple[Case, ...] = (
    Case(
        feature="fused_mamba",
        verdict="FASTER",
        ratio=0.287,
        half_width=0.008,
        op="ssm_scan",
        versus="recurrence.torch",
        observed="chunked.torch",
        memory_mib=-41,
        planned_blocks=9,
    ),
    Case(
        feature="fused_recurrent",
        verdict="FASTER",
        ratio=0.882,
        half_width=0.011,
        op="m2rnn_scan",
        versus="loop.torch",
        observed="fused.torch",
        memory_mib=-6.2,
    ),
    Case(
        feature="fused_residual",
        verdict="EQUIVALENT",
        ratio=0.9985,
        half_width=0.003,
        op="add_norm",
        versus="composed.torch",
        observed="fused.torch",
        reason="the 90 % interval lies inside the margin",
        memory_mib=0,
    ),
    Case(
        feature="fused_mla_ingress",
        verdict="INCONCLUSIVE",
        ratio=0.991,
        half_width=0.022,
        op="mla_ingress",
        versus="reshaped.torch",
        observed="assembled.torch",
        reason="the interval holds both 1 and effects beyond the margin",
        stance="9 more blocks would tell",
    ),
    Case(
        feature="fused_moe",
        verdict="FASTER",
        ratio=0.690,
        half_width=0.021,
        op="moe_experts",
        versus="padded.torch",
        observed="sorted.torch",
        stance="core",
        memory_mib=-12,
    ),
    Case(
        feature="fused_optimizer",
        verdict="SLOWER",
        ratio=1.034,
        half_width=0.009,
        op="optimizer_step",
        versus="per_tensor.torch",
        observed="fused.torch",
        reason="the whole interval is above 1 and the effect exceeds the margin",
        stance="leave off on this lane",
        memory_mib=2.4,
    ),
    Case(
        feature="regional_compile",
        verdict="FASTER",
        ratio=0.876,
        half_width=0.016,
        role="bridge",
        versus="eager",
        observed="inductor",
        stance="pays back after 640 steps",
        memory_mib=9,
        compile_seconds=8.7,
    ),
    Case(
        feature=LONG_NAME,
        verdict="INVALID",
        ratio=1.002,
        half_width=0.03,
        role="selective",
        op="mla_ingress",
        versus="assembled.torch",
        observed="reshaped.torch",
        observed_ok=False,
        reason="arm B asked for mla_ingress = absorbed.torch, observed reshaped.torch",
        stance="selective",
        memory_mib=None,
    ),
    Case(
        feature="extra_aux_losses",
        verdict="OVER_BUDGET",
        ratio=1.022,
        half_width=0.011,
        role="tax",
        budget=1.01,
        reason="the interval reaches +3.3 %, the budget is +1.0 %",
        stance="stays opt-in (budget 1 %)",
        memory_mib=1,
        loss_gain_per_step=0.001,
    ),
    Case(
        feature="backend_dispatch",
        verdict="NOT_MEASURED",
        ratio=1.0,
        half_width=0.0,
        role="bridge",
        versus="sdpa.torch",
        reason="both states resolve to sdpa.torch on this machine",
        stance="centralised",
        num_blocks=0,
    ),
)


def build_campaign(
    store: Store,
    *,
    cases: tuple[Case, ...] = CASES,
    lane_name: str = factory.LANE_NAME,
    campaign_id: str = factory.CAMPAIGN_ID,
    changes: Mapping[str, Any] | None = None,
) -> CampaignRecord:
    """Write receipts with sidecars, decisions and the campaign; returns the campaign."""
    rng = random.Random(7)
    spec = {**factory.LANE["spec"], "precision": {"compute": "fp32"}}
    lane = {**factory.LANE, "name": lane_name, "spec": spec}
    decisions = [_decision(store, rng, case, lane, campaign_id) for case in cases]
    for decision in decisions:
        store.write_decision(decision)
    campaign = factory.make_campaign(
        {
            "campaign_id": campaign_id,
            "lane": lane,
            "decisions": [d.decision_id for d in decisions],
            "features": [
                *(
                    _planned(c.feature, c.planned_blocks or c.num_blocks, None)
                    for c in cases
                    if c.num_blocks
                ),
                _planned("fused_linear_ce", 0, "the budget of 5 min holds no block of it"),
            ],
            "discarded_blocks": ["fused_moe block 2: arm B was killed (signal 9); it ran again"],
            "notes": ["Interactions: fused_residual × regional_compile cancel."],
            **(changes or {}),
        }
    )
    store.write_campaign(campaign)
    return campaign


def _planned(feature: str, num_blocks: int, skipped: str | None) -> dict[str, Any]:
    return {
        "feature": feature,
        "planned_blocks": num_blocks,
        "visits": 2 * num_blocks,
        "estimated_seconds": 8.1 * num_blocks,
        "skipped_reason": skipped,
    }


def _decision(
    store: Store, rng: random.Random, case: Case, lane: Mapping[str, Any], campaign_id: str
) -> Decision:
    treated = FULL_STACK_SECONDS * (case.ratio if case.role == "tax" else 1.0)
    control = treated / case.ratio
    blocks = [
        _block(store, rng, case, lane, campaign_id, block + 1, control, treated)
        for block in range(case.num_blocks)
    ]
    measured = case.num_blocks > 0
    asked = {} if case.op is None else {case.op: [case.observed]}
    memory = None if case.memory_mib is None or not measured else case.memory_mib * 2**20
    return factory.make_decision(
        {
            "decision_id": f"{campaign_id}-{case.feature}",
            "campaign_id": campaign_id,
            "lane": dict(lane),
            "feature": case.feature,
            "title": case.feature.replace("_", " "),
            "role": case.role,
            "versus": case.versus,
            "status": case.status,
            "arms": {
                "A": {"state": "off", "requested": {op: [case.versus] for op in asked}},
                "B": {"state": "on", "requested": asked},
            },
            "estimate": _estimate(case) if measured else None,
            "control_step_seconds": control if measured else None,
            "treated_step_seconds": treated if measured else None,
            "tokens_per_second": _delta(512 / control, 512 / treated, 1 / case.ratio - 1, measured),
            "peak_memory_bytes": {
                "control": None if memory is None else 120e6 - memory,
                "treated": None if memory is None else 120e6,
                "delta": memory,
                "reason": "switched off" if memory is None else None,
            },
            "goodput": _delta(
                0.55,
                0.552 - 0.02 * case.compile_seconds,
                0.002 - 0.02 * case.compile_seconds,
                measured,
            ),
            "loss_max_abs_diff": None if case.role == "tax" or not measured else 3.6e-7,
            **(_losses(store, blocks) if case.role == "tax" else {}),
            "observed": [case.observed] if measured else [],
            "observed_ok": case.observed_ok,
            "verdict": case.verdict,
            "reason": case.reason,
            "stance": case.stance,
            "tax_budget_ratio": case.budget,
            "blocks": blocks,
            **(_looks(case) if measured else {}),
        }
    )


def _losses(store: Store, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    control, treated = (store.read_steps(blocks[0]["receipts"][arm][0]) for arm in "AB")
    assert control is not None
    assert treated is not None
    found = compare_losses(control, treated)
    assert found is not None
    return {
        f"loss_{point}": {"control": pair.control, "treated": pair.treated, "delta": pair.delta}
        for point, pair in (("equal_steps", found.equal_steps), ("equal_time", found.equal_time))
    }


def _looks(case: Case) -> dict[str, Any]:
    planned = case.planned_blocks or case.num_blocks
    early = planned > case.num_blocks
    claims = case.verdict not in ("INVALID", "NOISE") and case.status == "COMPLETE"
    return {
        "boundary": {
            "looks": [case.num_blocks, planned] if early else [planned],
            "alpha": 0.05,
            "nominal_alpha": 0.03 if early else 0.05,
        },
        "looks": [
            {
                "num_blocks": case.num_blocks,
                "log_ratio": math.log(case.ratio),
                "nominal_p": 0.0004,
                "outcome": "difference" if case.verdict == "FASTER" else "last",
            }
        ],
        "adjusted_p": 0.0032 if claims else None,
        "adjustment": "holm" if claims else None,
    }


def _estimate(case: Case) -> dict[str, Any]:
    log_ratio = math.log(case.ratio)
    half_width = case.half_width / case.ratio
    return {
        "log_ratio": log_ratio,
        "ratio": case.ratio,
        "interval_low": math.exp(log_ratio - half_width),
        "interval_high": math.exp(log_ratio + half_width),
        "confidence": 0.95,
        "num_blocks": case.num_blocks,
        "block_sd_log": half_width / 2.48,
        "half_width_log": half_width,
        "mde_log": 1.4 * half_width,
        "sign_flip_p": 0.25,
    }


def _delta(control: float, treated: float, delta: float, measured: bool) -> dict[str, Any]:
    if not measured:
        return {"control": None, "treated": None, "delta": None, "reason": "nothing was measured"}
    return {"control": control, "treated": treated, "delta": delta, "reason": None}


def _block(
    store: Store,
    rng: random.Random,
    case: Case,
    lane: Mapping[str, Any],
    campaign_id: str,
    number: int,
    control: float,
    treated: float,
) -> dict[str, Any]:
    warmup = rng.choice((4, 5, 7))
    receipts = {}
    for arm, seconds in (("A", control), ("B", treated)):
        steps = _steps(rng, seconds, warmup, case.compile_seconds if arm == "B" else 0.0)
        if case.role == "tax" and arm == "B":
            gain = case.loss_gain_per_step
            losses = (None if x is None else x - gain * i for i, x in enumerate(steps.loss))
            steps = steps.model_copy(update={"loss": tuple(losses)})
        body = _receipt_changes(case, lane, campaign_id, number, arm, seconds, warmup, steps)
        receipts[arm] = [store.write_receipt(factory.make_body(body), steps=steps)[0]]
    return {
        "block": number,
        "design": "lockstep",
        "valid": case.verdict != "INVALID",
        "reasons": [] if case.verdict != "INVALID" else [case.reason],
        "contrast_log": math.log(case.ratio) + rng.gauss(0.0, case.half_width / 2.5),
        "num_quads": 7,
        "warmup_steps": warmup,
        "control_seconds": control,
        "treated_seconds": treated,
        "receipts": receipts,
    }


def _steps(rng: random.Random, seconds: float, warmup: int, first_extra: float) -> StepSeries:
    durations = []
    for step in range(NUM_STEPS):
        slow = 1.0 + 0.9 * math.exp(-1.1 * step) + (0.12 if step < warmup else 0.0)
        spike = 0.35 if rng.random() < 0.04 else 0.0
        durations.append(seconds * (slow + spike + rng.gauss(0.0, 0.012)))
    durations[0] += first_extra
    return factory.make_steps(NUM_STEPS).model_copy(
        update={"duration_seconds": tuple(durations), "tags": {"gc": (11, 29)}}
    )


def _receipt_changes(
    case: Case,
    lane: Mapping[str, Any],
    campaign_id: str,
    block: int,
    arm: str,
    seconds: float,
    warmup: int,
    steps: StepSeries,
) -> dict[str, Any]:
    total = sum(steps.duration_seconds)
    compiled = case.compile_seconds if arm == "B" else 0.0
    badput = {
        **factory.RECEIPT_BODY["goodput"]["badput_seconds"],
        "device_init": 0.21,
        "training_prep": 1.34 + 0.02 * block,
        "compile": compiled,
        "data_wait": 0.11,
        "gc": 0.06,
        "profiler": 0.4,
        "turn_wait": 0.93 * total,
        "other": 0.17,
    }
    wall = total - compiled + sum(badput.values())
    wrong = case.verdict == "INVALID" and arm == "B"
    asked = [case.versus if arm == "A" else ("absorbed.torch" if wrong else case.observed)]
    observed = [case.versus if arm == "A" else case.observed]
    changes: dict[str, Any] = {
        "lane": dict(lane),
        "experiment.campaign_id": campaign_id,
        "experiment.ablation_id": case.feature,
        "experiment.arm": arm,
        "experiment.block": block,
        "timing.warmup.steps": warmup,
        "timing.warmup.reason": f"one change point after step {warmup}",
        "timing.step_duration_seconds.median": seconds,
        "goodput.wall_duration_seconds": wall,
        "goodput.step_seconds": total - compiled,
        "goodput.goodput_ratio": (total - compiled) / (wall - badput["turn_wait"]),
        "goodput.badput_seconds": badput,
        "environment.num_threads": 2 if case.feature == "fused_moe" and block == 2 else 1,
        "flops.components": COMPONENTS,
    }
    if case.op is not None:
        backend = {
            **factory.RECEIPT_BODY["backends"][0],
            "op": case.op,
            "requested": asked,
            "chosen": observed[0],
            "observed": observed,
            "fallback_reason": "T=63 is not a multiple of 16" if wrong else None,
        }
        changes["backends"] = [backend]
    if wrong:
        check = {"name": "observed_backends", "ok": False, "detail": case.reason}
        changes |= {"outcome.validity": "invalid", "outcome.checks": [check]}
    return changes


COMPONENTS: list[dict[str, Any]] = [
    {
        "component": name,
        "count": count,
        "params": params,
        "active_params": active,
        "forward_flops_per_token": share * 2.2e6,
        "training_flops_per_token": share * 6.6e6,
    }
    for name, count, params, active, share in (
        ("attention (A)", 4, 262_000, 262_000, 0.17),
        ("experts (E)", 4, 1_050_000, 260_000, 0.39),
        ("mamba (M)", 3, 402_000, 402_000, 0.27),
        ("recurrent (R)", 1, 121_000, 121_000, 0.12),
        ("embedding and head", 1, 65_000, 65_000, 0.05),
    )
]


if __name__ == "__main__":
    target = Store(sys.argv[1])
    report = write_report(target, build_campaign(target).campaign_id, now=NOW)
    sys.stdout.write(f"{report}\n")
