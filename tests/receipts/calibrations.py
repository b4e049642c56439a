"""A valid calibration for tests, with overrides by field."""

from typing import Any

from lanewise.receipts.calibration import CalibrationRecord
from tests.receipts.factory import CREATED_AT, LANE, MACHINE, PRODUCER, make_receipt, sha

INTERVAL = {"low": -0.006, "high": 0.008}


def make_calibration(**changes: Any) -> CalibrationRecord:
    """Two A/A blocks of one campaign, a control and an observer."""
    receipt = make_receipt()
    fields: dict[str, Any] = {
        "calibration_id": "2026-11-23-nam56r-tiny-7-calibration",
        "created_at": CREATED_AT,
        "valid_until": "2026-12-23T10:00:00Z",
        "producer": PRODUCER,
        "lane": LANE,
        "machine": MACHINE,
        "environment": receipt.environment,
        "environment_digest": receipt.environment_digest,
        "protocol": {"method": "paired-blocks-t", "num_threads": 1},
        "protocol_digest": receipt.protocol_digest,
        "data_digest": receipt.data_digest,
        "design": "leave-one-out",
        "block_design": "lockstep",
        "num_threads": 1,
        "campaigns": ["2026-11-23-nam56r-tiny-7"],
        "blocks": [
            {
                "campaign_id": "2026-11-23-nam56r-tiny-7",
                "block": block,
                "contrast_log": contrast,
                "num_quads": 12,
                "wall_seconds": 9.5,
                "receipts": {"A": [sha(f"A{block}")], "B": [sha(f"B{block}")]},
            }
            for block, contrast in ((1, 0.011), (2, -0.009))
        ],
        "num_blocks": 2,
        "quads_per_block": 12.0,
        "seconds_per_block": 9.5,
        "block_sd_log": 0.0141,
        "block_sd_interval": {"low": 0.009, "high": 0.02},
        "bias_log": 0.001,
        "bias_interval": INTERVAL,
        "bias_p": 0.9,
        "biased": False,
        "autocorrelation": -0.5,
        "autocorrelation_p": 1.0,
        "drifting": False,
        "false_positives": [
            {
                "looks": [4, 8, 12],
                "margin_log": 0.0,
                "trials": 200,
                "called": 10,
                "rate": 0.05,
                "interval": {"low": 0.027, "high": 0.09},
            }
        ],
        "half_width_log": 0.007,
        "margin": {"log_value": 0.014, "source": "2026-11-23-nam56r-tiny-7-calibration"},
        "detectable": [{"num_blocks": 4, "effect_log": 0.04}],
        "control": {
            "campaign_id": "2026-11-23-nam56r-tiny-8",
            "decision_id": "2026-11-23-nam56r-tiny-8-planted",
            "planted_log": 0.0488,
            "planned_blocks": 6,
            "num_blocks": 6,
            "verdict": "SLOWER",
            "log_ratio": 0.047,
            "interval_log": {"low": 0.038, "high": 0.056},
            "found": True,
            "covered": True,
        },
        "observer": {"in_step_ratio": 0.0003, "total_ratio": 0.0006},
    }
    return CalibrationRecord.model_validate({**fields, **changes})
