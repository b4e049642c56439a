"""Forward + backward of `ssm_scan`, `mimo_scan`, `m2rnn_scan` and `moe_experts` on the CPU: fast path against its control.

    PYTHONPATH=src python -m benchmarks.ops_cpu_scans --threads 1 2 --json results.json

The two backends take turns on the same random inputs, so that drift of the machine meets both; the table shows medians
and the ratio of medians of the paired runs. With one thread the time is CPU time of the process, which other processes
disturb less; with more threads it is wall time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lanewise.ops.dispatch import load
from lanewise.ops.m2rnn_scan import SPEC as M2RNN_SCAN
from lanewise.ops.mimo_scan import SPEC as MIMO_SCAN
from lanewise.ops.moe_experts import SPEC as MOE_EXPERTS
from lanewise.ops.shapes import SHAPES
from lanewise.ops.spec import OpSpec
from lanewise.ops.ssm_scan import SPEC as SSM_SCAN

SHAPE = "nam56r-tiny"
WARMUP_PAIRS = 5
Arguments = tuple[Any, ...]


def ssm_arguments(chunk_size: int) -> Arguments:
    d = SHAPES["ssm_scan"][SHAPE]
    batch, length, heads, groups, state = (d[name] for name in "BTHGN")
    dt = F.softplus(torch.randn(batch, length, heads) - 2)
    values = (
        torch.randn(batch, length, groups, state),
        torch.randn(batch, length, groups, state),
        torch.randn(batch, length, heads, d["P"]),
        dt,
        -dt * torch.randn(batch, length, heads).exp(),
        torch.randn(batch, length, heads),
        torch.randn(batch, length, d["n"]),
        torch.ones(heads, state),
        torch.ones(heads, state),
        torch.ones(heads),
        torch.randn(batch, length, heads, d["P"]),
    )
    return (*(value.requires_grad_() for value in values), chunk_size)


def mimo_arguments(chunk_size: int) -> Arguments:
    d = SHAPES["mimo_scan"][SHAPE]
    batch, length, heads, groups, state, rank = (d[name] for name in "BTHGNR")
    dt = F.softplus(torch.randn(batch, length, heads) - 2)
    values = (
        torch.randn(batch, length, rank, groups, state),
        torch.randn(batch, length, rank, groups, state),
        torch.randn(batch, length, heads, d["P"]),
        dt,
        -dt * torch.randn(batch, length, heads).exp(),
        torch.randn(batch, length, heads),
        torch.randn(batch, length, d["n"]),
        torch.ones(heads, rank, state),
        torch.ones(heads, rank, state),
        torch.ones(heads),
        torch.randn(batch, length, heads, d["P"]),
        torch.ones(heads, rank, d["P"]) / rank,
        torch.ones(heads, rank, d["P"]),
        torch.ones(heads, rank, d["P"]) / rank,
    )
    return (*(value.requires_grad_() for value in values), chunk_size)


def m2rnn_arguments() -> Arguments:
    d = SHAPES["m2rnn_scan"][SHAPE]
    batch, length, heads, value_dim = (d[name] for name in "BTHV")
    values = (
        torch.randn(batch, length, d["K"]),
        torch.randn(batch, length, d["K"]),
        torch.randn(batch, length, heads, value_dim),
        torch.randn(heads, value_dim, value_dim) / value_dim**0.5,
        torch.rand(batch, length, heads),
    )
    return (*(value.requires_grad_() for value in values), 1.0)


def moe_arguments(router_skew: float) -> Arguments:
    """Routing by the top k of random scores plus `router_skew` times a preference of each expert."""
    d = SHAPES["moe_experts"][SHAPE]
    scores = torch.randn(d["S"], d["E"]) + router_skew * torch.randn(d["E"])
    return (
        torch.randn(d["S"], d["d"]).requires_grad_(),
        scores.topk(d["k"]).indices,
        torch.rand(d["S"], d["k"]).requires_grad_(),
        (torch.randn(d["E"], d["d"], d["F"]) / d["d"] ** 0.5).requires_grad_(),
        (torch.randn(d["E"], d["F"], d["d"]) / d["F"] ** 0.5).requires_grad_(),
        "gelu",
    )


CASES: tuple[tuple[str, OpSpec, str, str, Callable[[], Arguments]], ...] = (
    ("chunk 16", SSM_SCAN, "chunked.torch", "recurrence.torch", partial(ssm_arguments, 16)),
    ("chunk 32", SSM_SCAN, "chunked.torch", "recurrence.torch", partial(ssm_arguments, 32)),
    ("chunk 64", SSM_SCAN, "chunked.torch", "recurrence.torch", partial(ssm_arguments, 64)),
    ("chunk 16", MIMO_SCAN, "chunked.torch", "recurrence.torch", partial(mimo_arguments, 16)),
    ("chunk 32", MIMO_SCAN, "chunked.torch", "recurrence.torch", partial(mimo_arguments, 32)),
    ("", M2RNN_SCAN, "fused.torch", "loop.torch", m2rnn_arguments),
    ("even router", MOE_EXPERTS, "sorted.torch", "padded.torch", partial(moe_arguments, 0.0)),
    ("skewed router", MOE_EXPERTS, "sorted.torch", "padded.torch", partial(moe_arguments, 0.5)),
)


def time_step_ms(
    function: Callable[..., Tensor], arguments: Arguments, clock: Callable[[], float]
) -> float:
    for value in arguments:
        if isinstance(value, Tensor):
            value.grad = None
    start = clock()
    y = function(*arguments)
    y.backward(torch.ones_like(y))
    return (clock() - start) * 1e3


def compare(
    spec: OpSpec,
    names: tuple[str, str],
    arguments: Arguments,
    pairs: int,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Milliseconds of every run, by backend; the backend that goes first changes from pair to pair."""
    functions = {name: load(_target(spec, name)) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    for pair in range(WARMUP_PAIRS + pairs):
        for name in names if pair % 2 else reversed(names):
            elapsed_ms = time_step_ms(functions[name], arguments, clock)
            if pair >= WARMUP_PAIRS:
                samples[name].append(elapsed_ms)
    return samples


def _target(spec: OpSpec, name: str) -> str:
    backend = spec.backend(name)
    assert backend is not None, name
    return backend.target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write every sample there")
    options = parser.parse_args()
    rows = []
    print(f"{'op':12} {'case':14} {'threads':>7} {'fast ms':>9} {'control ms':>10} {'speed-up':>8}")
    for num_threads in options.threads:
        torch.set_num_threads(num_threads)
        clock = time.process_time if num_threads == 1 else time.perf_counter
        for case, spec, fast, control, make in CASES:
            torch.manual_seed(0)
            samples = compare(spec, (fast, control), make(), options.pairs, clock)
            fast_ms, control_ms = (statistics.median(samples[name]) for name in (fast, control))
            speed_up = statistics.median(
                c / f for f, c in zip(samples[fast], samples[control], strict=True)
            )
            print(
                f"{spec.name:12} {case:14} {num_threads:7} {fast_ms:9.2f} {control_ms:10.2f} {speed_up:7.2f}×"
            )
            rows.append(
                {
                    "op": spec.name,
                    "case": case,
                    "shape": dict(SHAPES[spec.name][SHAPE]),
                    "num_threads": num_threads,
                    "clock": "process" if num_threads == 1 else "wall",
                    "speed_up": speed_up,
                    "samples_ms": samples,
                }
            )
    if options.json:
        document = {"torch": torch.__version__, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
