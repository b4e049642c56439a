"""Valid records for tests: a receipt, a decision, a campaign, each with overrides by dotted path.

    make_receipt({"experiment.arm": "B", "timing.step_duration_seconds.median": 0.08})
    make_receipt({"features.0.effective": "off", "goodput": None, "missing": {"goodput": "switched off"}})

Everything is a constant, so equal overrides give equal ids.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

from lanewise.receipts.ceilings import CeilingRecord
from lanewise.receipts.decision import CampaignRecord, Decision
from lanewise.receipts.document import receipt_id_of
from lanewise.receipts.schema import BADPUT_CATEGORIES, RunReceipt, StepSeries

LANE_NAME = "nam56r-tiny"
PLACEHOLDER_ID = "sha256:" + "0" * 64
CREATED_AT = "2026-11-23T10:00:00Z"
CAMPAIGN_ID = "2026-11-23-nam56r-tiny-7"


def sha(label: str) -> str:
    """A digest that stands for `label`."""
    return "sha256:" + hashlib.sha256(label.encode()).hexdigest()


LANE: dict[str, Any] = {
    "name": LANE_NAME,
    "canonical_name": "nam56r-AEMEAEMEAEMR-12-cpu-x86_64-2c×1-dp1-fp32-ablate",
    "digest": sha("lane"),
    "layer_pattern": "AEMEAEMEAEMR",
    "num_layers": 12,
    "spec": {
        "batch": {
            "sequence_length": 64,
            "micro_batch_size": 8,
            "gradient_accumulation_steps": 1,
        },
        "model": {"pattern": "AEMEAEMEAEMR", "num_layers": 12, "hidden_size": 128},
        "optimizer": {"name": "adamw", "learning_rate": 0.0003},
        "seed": 0,
    },
}
MACHINE: dict[str, Any] = {
    "class_name": "cpu-x86_64-2c",
    "class_digest": sha("machine class"),
    "instance_digest": sha("machine instance"),
    "instance_source": "installation",
}
PRODUCER: dict[str, Any] = {"name": "lanewise", "version": "0.1.0"}

_BADPUT = {**dict.fromkeys(BADPUT_CATEGORIES, 0.0), "training_prep": 1.5, "data_wait": 0.25}

RECEIPT_BODY: dict[str, Any] = {
    "schema_version": "1.2.0",
    "kind": "run",
    "created_at": CREATED_AT,
    "producer": PRODUCER,
    "supersedes": [],
    "lane": LANE,
    "config_digest": sha("config"),
    "protocol_digest": sha("protocol"),
    "environment_digest": sha("environment"),
    "data_digest": sha("data"),
    "machine": MACHINE,
    "features": [
        {
            "key": "fused_moe",
            "role": "hot_path",
            "requested": "on",
            "effective": "on",
            "source": "ablation",
        },
        {
            "key": "fused_mamba",
            "role": "hot_path",
            "requested": "on",
            "effective": "on",
            "source": "stance",
        },
    ],
    "backends": [
        {
            "op": "moe_experts",
            "requested": ["sorted.torch"],
            "chosen": "sorted.torch",
            "observed": ["sorted.torch"],
            "launches": 60,
            "proof": "counter",
            "rejected": {},
            "fallback_reason": None,
        },
        {
            "op": "ssm_scan",
            "requested": ["chunked.torch"],
            "chosen": "chunked.torch",
            "observed": ["chunked.torch"],
            "launches": 36,
            "proof": "counter",
            "rejected": {},
            "fallback_reason": None,
        },
    ],
    "experiment": {
        "campaign_id": CAMPAIGN_ID,
        "ablation_id": "fused_moe",
        "arm": "B",
        "block": 0,
        "position": 1,
        "design": "lockstep",
        "order_seed": 7,
    },
    "timing": {
        "clock": "perf_counter_ns",
        "warmup": {
            "rule": "pelt-1",
            "steps": 3,
            "steady": True,
            "reason": "one change point after step 3",
        },
        "step_duration_seconds": {
            "count": 20,
            "median": 0.1,
            "mean": 0.101,
            "p10": 0.098,
            "p90": 0.104,
            "mad": 0.0011,
        },
        "window_duration_seconds": 2.02,
        "event_wall_gap_ratio": None,
        "step_tags": {"gc": 1},
        "between_steps_seconds": 0.0002,
    },
    "throughput": {
        "tokens_per_second": 5120.0,
        "tokens_per_second_per_device": 5120.0,
        "tokens_real": 10240,
        "tokens_padded": 0,
    },
    "goodput": {
        "wall_duration_seconds": 4.5,
        "step_seconds": 2.5,
        "goodput_ratio": 0.5555555555555556,
        "badput_seconds": {**_BADPUT, "other": 0.25},
        "overlapped_seconds": 0.0,
        "observer_seconds": 0.0005,
    },
    "compile": {
        "enabled": False,
        "cache_state": "unused",
        "compile_duration_seconds": 0.0,
        "graph_breaks": 0,
        "recompiles": 0,
        "graph_captures": 0,
        "cache_digest": None,
        "warmup_policy": "nothing_compiled",
    },
    "memory": {
        "method": "tensor storage in one profiled step",
        "peak_allocated_bytes": 120_000_000,
        "peak_reserved_bytes": None,
        "peak_device_used_bytes": 480_000_000,
        "alloc_retries": None,
        "ooms": None,
    },
    "profile": {
        "method": "one profiled step",
        "step_seconds": 0.12,
        "ops": {
            "moe_experts": {"share_ratio": 0.25, "launches": 5},
            "ssm_scan": {"share_ratio": 0.3, "launches": 3},
        },
        "blocks": {
            "E": {"share_ratio": 0.3, "launches": 5},
            "M": {"share_ratio": 0.4, "launches": 3},
        },
    },
    "backend_versions": {
        "moe_experts=sorted.torch": {"torch": "2.13.0", "kernels/moe_experts_torch.py": "sha256:1"},
        "ssm_scan=chunked.torch": {"torch": "2.13.0", "kernels/ssm_scan_torch.py": "sha256:2"},
    },
    "flops": {
        "convention": "lanewise-flops",
        "convention_version": "1",
        "causal_factor": "(S+1)/2",
        "mla_form": "expanded",
        "components": [
            {
                "component": "moe",
                "count": 5,
                "params": 1_000_000,
                "active_params": 250_000,
                "forward_flops_per_token": 500_000.0,
                "training_flops_per_token": 1_500_000.0,
            }
        ],
        "params_total": 1_900_000,
        "params_active": 1_100_000,
        "training_flops_per_token": 6_600_000.0,
        "routing_mode": "learned",
        "peak_dtype": "fp32",
        "peak_flops_per_second": None,
        "peak_source": None,
        "measured_matmul_flops_per_second": 90e9,
        "model_flops_utilization_ratio": 0.375,
        "hardware_flops_utilization_ratio": 0.375,
        "hardware_flops_per_token": 6_600_000.0,
        "six_n_active_flops_per_token": 6_000_000.0,
        "ceiling": {
            "matmul_flops_per_second": 90e9,
            "dtype": "fp32",
            "num_threads": 1,
            "measured_at": "2026-11-23T09:00:00Z",
            "age_seconds": 3600.0,
            "machine_instance_digest": sha("machine instance"),
        },
        "flags": [],
    },
    "routing": {
        "mode": "learned",
        "top_k": 2,
        "expert_load_cv": 0.31,
        "dropped_ratio": 0.0,
        "expert_picks": [[30, 10], [20, 20]],
        "expert_picks_cv": [0.5, 0.0],
        "null_ratio": 0.0,
        "expert_ranks": [0, 0],
        "tokens_between_ranks": [[0]],
    },
    "telemetry": {
        "sm_clock_hertz": None,
        "memory_clock_hertz": None,
        "power_watts": None,
        "energy_joules": None,
        "temperature_celsius": None,
        "clock_event_reasons": [],
    },
    "host": {
        "window_seconds": 4.0,
        "cores": [1],
        "pinned": True,
        "steal_ratio": 0.001,
        "foreign_load_ratio": 0.02,
        "cpu_seconds": 1.9,
        "involuntary_switches": 12,
        "major_faults": 0,
        "frequency_hertz": 2.5e9,
        "huge_page_bytes": 67108864,
    },
    "numerics": {
        "loss_first": 5.55,
        "loss_last": 4.1,
        "losses_finite": True,
        "grad_norm_last": 0.9,
        "grad_norm_finite": True,
        "paired_loss_max_abs_diff": None,
    },
    "environment": {
        "host_arch": "x86_64",
        "host_cpu_model_name": "Example CPU",
        "host_cpu_count": 2,
        "host_memory_bytes": 8_000_000_000,
        "os_description": "Example Linux 1, Linux 6.1",
        "python_version": "3.11.7",
        "vcs_revision": "0123456789abcdef0123456789abcdef01234567",
        "vcs_dirty": False,
        "device_model": None,
        "device_driver_version": None,
        "packages": {"lanewise": "0.1.0+source.0123456789abcdef", "torch": "2.13.0"},
        "variables": {"OMP_NUM_THREADS": "1"},
        "num_threads": 1,
    },
    "data": {
        "source": "stdlib",
        "tokenizer": "bytes",
        "num_documents": 600,
        "num_tokens": 11_900_000,
        "digest": sha("data"),
        "unigram_entropy_nats": 3.2,
    },
    "outcome": {
        "status": "success",
        "validity": "valid",
        "checks": [{"name": "observed_backends", "ok": True, "detail": ""}],
        "error": None,
    },
    "artifacts": [],
    "missing": {
        "timing.event_wall_gap_ratio": "no device events on a CPU",
        "memory": "the CPU allocator keeps no such counters",
        "flops.peak_flops_per_second": "no published peak for this CPU",
        "flops.peak_source": "no published peak for this CPU",
        "flops.tensor_activity": "no GPU",
        "profile.device_busy_seconds": "nothing was launched on a device",
        "telemetry": "no GPU",
        "compile.cache_digest": "nothing is compiled",
    },
    "extensions": {},
}

_NO_DELTA = {"control": None, "treated": None, "delta": None, "reason": "nothing compiled"}

DECISION: dict[str, Any] = {
    "schema_version": "1.0.0",
    "decision_id": f"{CAMPAIGN_ID}-fused_moe",
    "kind": "decision",
    "created_at": CREATED_AT,
    "producer": PRODUCER,
    "method": "paired-blocks-t",
    "method_version": "1",
    "campaign_id": CAMPAIGN_ID,
    "status": "COMPLETE",
    "incomplete_reason": None,
    "lane": LANE,
    "machine": MACHINE,
    "feature": "fused_moe",
    "title": "fused MoE",
    "role": "hot_path",
    "design": "leave-one-out",
    "versus": "padded.torch",
    "arms": {
        "A": {"state": "off", "requested": {"moe_experts": ["padded.torch"]}},
        "B": {"state": "on", "requested": {"moe_experts": ["sorted.torch"]}},
    },
    "estimate": {
        "log_ratio": -0.371,
        "ratio": 0.69,
        "interval_low": 0.67,
        "interval_high": 0.71,
        "confidence": 0.95,
        "num_blocks": 3,
        "block_sd_log": 0.012,
        "half_width_log": 0.029,
        "mde_log": 0.034,
        "sign_flip_p": 0.25,
    },
    "control_step_seconds": 0.145,
    "treated_step_seconds": 0.1,
    "tokens_per_second": {"control": 3531.0, "treated": 5120.0, "delta": 0.45, "reason": None},
    "peak_memory_bytes": {"control": 132e6, "treated": 120e6, "delta": -12e6, "reason": None},
    "goodput": {"control": 0.55, "treated": 0.56, "delta": 0.01, "reason": None},
    "compile_seconds": _NO_DELTA,
    "loss_max_abs_diff": 1e-6,
    "observed": ["sorted.torch"],
    "observed_ok": True,
    "verdict": "FASTER",
    "reason": "the whole interval is below 1",
    "stance": "default on",
    "margin": {"log_value": 0.01, "source": "protocol"},
    "tax_budget_ratio": None,
    "blocks": [
        {
            "block": 0,
            "design": "lockstep",
            "valid": True,
            "reasons": [],
            "contrast_log": -0.371,
            "num_quads": 5,
            "warmup_steps": 3,
            "control_seconds": 0.145,
            "treated_seconds": 0.1,
            "receipts": {"A": [sha("receipt A")], "B": [sha("receipt B")]},
        }
    ],
}

CAMPAIGN: dict[str, Any] = {
    "schema_version": "1.0.0",
    "campaign_id": CAMPAIGN_ID,
    "kind": "campaign",
    "created_at": CREATED_AT,
    "finished_at": "2026-11-23T10:03:40Z",
    "producer": PRODUCER,
    "status": "COMPLETE",
    "lane": LANE,
    "machine": MACHINE,
    "design": "leave-one-out",
    "block_design": "lockstep",
    "budget_seconds": 300.0,
    "order_seed": 7,
    "planned_mde_log": 0.024,
    "planned_noise_log": 0.029,
    "noise_source": "assumed",
    "features": [
        {
            "feature": "fused_moe",
            "planned_blocks": 3,
            "visits": 6,
            "estimated_seconds": 27.5,
            "skipped_reason": None,
        }
    ],
    "decisions": [f"{CAMPAIGN_ID}-fused_moe"],
    "discarded_blocks": [],
    "stack_ratio": 0.256,
    "notes": [],
}


def override(document: dict[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """A deep copy with values replaced by dotted path; numbers in a path index lists, new last keys are added."""
    changed = copy.deepcopy(document)
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        place: Any = changed
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[int(last) if isinstance(place, list) else last] = copy.deepcopy(value)
    return changed


def make_body(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON body of a valid receipt, without its id: what `Store.write_receipt` takes."""
    return override(RECEIPT_BODY, changes)


def make_receipt(changes: Mapping[str, Any] | None = None) -> RunReceipt:
    """A valid receipt whose id matches its content."""
    draft = RunReceipt.model_validate({**make_body(changes), "receipt_id": PLACEHOLDER_ID})
    body = draft.model_dump(mode="json")
    return RunReceipt.model_validate({**body, "receipt_id": receipt_id_of(body)})


def make_steps(num_steps: int = 23, *, seconds: float = 0.1) -> StepSeries:
    """The sidecar of a run of equal steps, the first three slower."""
    durations = [seconds * (3.0 if step < 3 else 1.0) for step in range(num_steps)]
    return StepSeries(
        step=tuple(range(num_steps)),
        start_seconds=tuple(1.5 + sum(durations[:step]) for step in range(num_steps)),
        duration_seconds=tuple(durations),
        data_wait_seconds=(0.01,) * num_steps,
        loss=tuple(5.55 - 0.06 * step for step in range(num_steps)),
        grad_norm=(0.9,) * num_steps,
        tags={"gc": (num_steps // 2,)},
    )


def make_decision(changes: Mapping[str, Any] | None = None) -> Decision:
    """A complete decision: fused_moe is faster."""
    return Decision.model_validate(override(DECISION, changes))


def make_campaign(changes: Mapping[str, Any] | None = None) -> CampaignRecord:
    """A complete campaign of one feature."""
    return CampaignRecord.model_validate(override(CAMPAIGN, changes))


def make_ceilings(changes: Mapping[str, Any] | None = None) -> CeilingRecord:
    """What the example machine does at best with one thread."""
    document = {
        "measured_at": "2026-11-23T09:00:00Z",
        "producer": PRODUCER,
        "machine": MACHINE,
        "torch_version": "2.13.0",
        "dtype": "fp32",
        "num_threads": 1,
        "copy_bytes_per_second": 12e9,
        "copy_buffer_bytes": 2**26,
        "matmul_flops_per_second": 90e9,
        "matmul_size": 1024,
        "num_samples": {"copy": 15, "matmul": 15},
    }
    return CeilingRecord.model_validate(override(document, changes))
