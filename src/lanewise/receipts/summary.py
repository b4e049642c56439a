"""A receipt in words: what a person reads before opening the JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lanewise.receipts.document import short
from lanewise.receipts.schema import BackendRecord, Goodput, RunReceipt, Timing

_LABEL_WIDTH = 10
_MIB = 2**20


def summary_lines(receipt: RunReceipt) -> list[str]:
    """The receipt as labelled lines, the most important first."""
    lines: list[str] = []
    for label, texts in _sections(receipt):
        for position, text in enumerate(texts):
            lines.append(f"{label if position == 0 else '':<{_LABEL_WIDTH}}{text}")
    return lines


def format_seconds(seconds: float | None) -> str:
    """A duration in the unit that suits it; `–` when it was not measured."""
    if seconds is None:
        return "–"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1.0 else f"{seconds:.2f} s"


def format_bytes(num_bytes: float | None) -> str:
    """A size in MiB, GiB from 10 GiB on; `–` when it was not measured."""
    if num_bytes is None:
        return "–"
    mib = num_bytes / _MIB
    return f"{mib:,.0f} MiB" if mib < 10 * 1024 else f"{mib / 1024:,.1f} GiB"


def format_percent(ratio: float | None) -> str:
    """A share in percent; `–` when it was not measured."""
    return "–" if ratio is None else f"{ratio * 100:.1f} %"


def format_count(count: float | None) -> str:
    """A number with thousands separated; `–` when it was not measured."""
    return "–" if count is None else f"{count:,.0f}"


def _sections(receipt: RunReceipt) -> Iterator[tuple[str, Sequence[str]]]:
    lane, outcome, environment = receipt.lane, receipt.outcome, receipt.environment
    yield "receipt", [receipt.receipt_id]
    yield "", [f"{receipt.kind} · {receipt.created_at} · {outcome.status} · {outcome.validity}"]
    if outcome.error:
        yield "error", [outcome.error]
    if outcome.failure_family is not None:
        yield "failure", [f"{outcome.failure_family} · `--view failure` has the facts"]
    yield (
        "lane",
        [
            f"{lane.name} · {lane.canonical_name} · {short(lane.digest)}",
            f"{lane.layer_pattern} · {lane.num_layers} layers · config {short(receipt.config_digest)}",
        ],
    )
    yield (
        "machine",
        [
            f"{receipt.machine.class_name} · {environment.device_model or environment.host_cpu_model_name or 'CPU unknown'}",
            f"{environment.os_description} · Python {environment.python_version} · "
            f"torch {environment.packages.get('torch', '–')} · lanewise {receipt.producer.version}"
            + (" (changed checkout)" if environment.vcs_dirty else ""),
        ],
    )
    if receipt.experiment is not None:
        place = receipt.experiment
        yield (
            "campaign",
            [
                f"{place.campaign_id} · {place.ablation_id} · arm {place.arm} · block {place.block} · "
                f"position {place.position} · {place.design}"
            ],
        )
    yield "features", [_feature(entry) for entry in _feature_rows(receipt)] or ["none"]
    yield "backends", [_backend(backend) for backend in receipt.backends] or ["none"]
    yield "timing", list(_timing(receipt.timing))
    yield (
        "tokens",
        [
            f"{format_count(receipt.throughput.tokens_per_second)} tokens/s · "
            f"{receipt.throughput.tokens_real:,} real, {receipt.throughput.tokens_padded:,} padded"
        ],
    )
    yield "goodput", list(_goodput(receipt.goodput))
    memory = receipt.memory
    yield (
        "memory",
        [
            f"peak allocated {format_bytes(memory.peak_allocated_bytes)} · "
            f"peak of the device or process {format_bytes(memory.peak_device_used_bytes)} · {memory.method}"
        ],
    )
    flops = receipt.flops
    yield (
        "flops",
        [
            f"{flops.training_flops_per_token:,.0f} per token ({flops.convention} {flops.convention_version}) · "
            f"utilisation {format_percent(flops.model_flops_utilization_ratio)} of the model, "
            f"{format_percent(flops.hardware_flops_utilization_ratio)} of the hardware",
            *_ceilings(receipt),
            *(f"✗ {flag}" for flag in flops.flags or ()),
        ],
    )
    numerics = receipt.numerics
    yield "loss", [f"{_loss(numerics.loss_first)} → {_loss(numerics.loss_last)} nats per token"]
    yield (
        "data",
        [
            f"{receipt.data.source} · {receipt.data.num_tokens:,} tokens · {short(receipt.data_digest)}"
        ],
    )
    yield "checks", list(_checks(receipt)) or ["none"]
    yield "missing", [f"{path}: {reason}" for path, reason in receipt.missing.items()]
    yield (
        "files",
        [f"{item.kind} {item.uri} · {item.size_bytes:,} bytes" for item in receipt.artifacts],
    )


def _ceilings(receipt: RunReceipt) -> Iterator[str]:
    """Against what utilisation is measured, and how old the measured ceiling was."""
    flops = receipt.flops
    if flops.peak_flops_per_second is not None:
        yield f"of {flops.peak_flops_per_second / 1e12:,.1f} TFLOP/s, {flops.peak_source}"
    if flops.ceiling is not None:
        cited = flops.ceiling
        yield (
            f"measured matmul {cited.matmul_flops_per_second / 1e9:,.0f} GFLOP/s, {cited.dtype}, "
            f"{cited.age_seconds / 86400:.1f} days before "
            "· `--view utilization` shows every ratio"
        )


def _feature_rows(receipt: RunReceipt) -> list[tuple[str, str, str, str]]:
    return [
        (entry.key, entry.requested, entry.effective, entry.source) for entry in receipt.features
    ]


def _feature(row: tuple[str, str, str, str]) -> str:
    key, requested, effective, source = row
    changed = "" if requested == effective else f" → {effective}"
    return f"{key:<20} {requested}{changed}  ({source})"


def _backend(backend: BackendRecord) -> str:
    requested = ", ".join(backend.requested) or "own order"
    observed = ", ".join(backend.observed) or "nothing"
    mark = "✓" if backend.observed == (backend.chosen,) else "✗"
    proof = f"{backend.proof}, {backend.launches:,} launches"
    fallback = f"; fell back: {backend.fallback_reason}" if backend.fallback_reason else ""
    return f"{backend.op:<20} {requested} → {observed} {mark}  ({proof}{fallback})"


def _timing(timing: Timing) -> Iterator[str]:
    steps = timing.step_duration_seconds
    if steps is None:
        yield "no steady steps"
    else:
        yield (
            f"median {format_seconds(steps.median)} · mean {format_seconds(steps.mean)} · "
            f"p10 {format_seconds(steps.p10)} · p90 {format_seconds(steps.p90)} · "
            f"MAD {format_seconds(steps.mad)} · {steps.count} steady steps"
        )
    warmup = timing.warmup
    steady = "steady" if warmup.steady else "not steady"
    yield f"warm-up {warmup.steps} steps dropped by {warmup.rule} · {steady} · {warmup.reason}"
    if timing.step_tags:
        yield "tagged " + ", ".join(f"{tag} {count}" for tag, count in timing.step_tags.items())


def _goodput(goodput: Goodput | None) -> Iterator[str]:
    if goodput is None:
        yield "not accounted"
        return
    wall = goodput.wall_duration_seconds
    yield (
        f"{format_percent(goodput.goodput_ratio)} · steps {goodput.step_seconds:.2f} s of "
        f"{wall:.2f} s wall time"
        + (
            f" · accounting {format_seconds(goodput.observer_seconds)}"
            if goodput.observer_seconds is not None
            else ""
        )
    )
    lost = sorted(goodput.badput_seconds.items(), key=lambda item: -abs(item[1]))
    for category, seconds in lost:
        if seconds:
            share = format_percent(seconds / wall) if wall else "–"
            yield f"{category:<20} {seconds:8.3f} s  {share:>7}"


def _checks(receipt: RunReceipt) -> Iterator[str]:
    for check in receipt.outcome.checks:
        detail = f": {check.detail}" if check.detail else ""
        yield f"{'✓' if check.ok else '✗'} {check.name}{detail}"


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
