"""The summary says what was asked, observed, measured and missing."""

import pytest

from lanewise.receipts.summary import format_bytes, format_seconds, summary_lines
from tests.receipts.factory import make_receipt


def text(changes: dict[str, object] | None = None) -> str:
    return "\n".join(summary_lines(make_receipt(changes)))


@pytest.mark.parametrize(
    "part",
    [
        "nam56r-tiny · nam56r-AEMEAEMEAEMR-12-cpu-x86_64-2c",
        "fused_moe            on  (ablation)",
        "moe_experts          sorted.torch → sorted.torch ✓  (counter, 60 launches)",
        "median 100.0 ms",
        "warm-up 3 steps dropped by pelt-1 · steady",
        "55.6 % · steps 2.50 s of 4.50 s",
        "training_prep           1.500 s   33.3 %",
        "other                   0.250 s    5.6 %",
        "peak allocated 114 MiB",
        "✓ observed_backends",
        "telemetry: no GPU",
        "2026-11-23-nam56r-tiny-7 · fused_moe · arm B · block 0",
    ],
)
def test_the_summary_holds(part: str) -> None:
    assert part in text()


def test_a_backend_that_was_not_observed_is_marked() -> None:
    changes: dict[str, object] = {
        "backends.0.observed": ["padded.torch"],
        "backends.0.fallback_reason": "T=4095 is not a multiple of 16",
    }
    assert "sorted.torch → padded.torch ✗  (counter, 60 launches; fell back: T=4095" in text(
        changes
    )
    assert "sorted.torch → nothing ✗" in text({"backends.0.observed": []})


def test_what_is_absent_is_said() -> None:
    absent = text(
        {
            "goodput": None,
            "timing.step_duration_seconds": None,
            "numerics.loss_last": None,
            "outcome.status": "aborted",
            "outcome.error": "interrupted by Ctrl-C",
            "features": [],
            "experiment": None,
        }
    )
    for part in (
        "not accounted",
        "no steady steps",
        "5.5500 → not finite",
        "interrupted by Ctrl-C",
    ):
        assert part in absent
    assert "campaign " not in absent


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "–"), (0.000012, "12 µs"), (0.1234, "123.4 ms"), (2.5, "2.50 s")],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert format_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("num_bytes", "shown"), [(None, "–"), (3 * 2**20, "3 MiB"), (80 * 2**30, "80.0 GiB")]
)
def test_sizes(num_bytes: float | None, shown: str) -> None:
    assert format_bytes(num_bytes) == shown
