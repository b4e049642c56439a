"""Time every CPU backend of an op, forward and backward, at the shapes of `nam56r-tiny`.

Backends of one op take turns, call by call, on the same random inputs, so that a busy machine slows all of them alike;
with one thread the clock is that thread's CPU time, which a neighbour on the same core does not move. Printed: the
median and the quartiles in milliseconds, and each median over that of the control (`vs`).

    python -m benchmarks.ops_cpu [--op add_norm …] [--shape nam56r-tiny] [--repeats 40] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lanewise.ops.dispatch import capabilities, rejection
from lanewise.ops.mla_ingress import rope_tables
from lanewise.ops.opset import OpSet
from lanewise.ops.registry import SPECS
from lanewise.ops.shapes import SHAPES
from lanewise.ops.spec import Problem

CONTROLS = {
    "add_norm": "composed.torch",
    "mla_ingress": "reshaped.torch",
    "attention_core": "sdpa.torch",
    "linear_cross_entropy": "plain.torch",
    "optimizer_step": "per_tensor.torch",
}
NUM_WARMUP = 5


def leaf(*size: int) -> Tensor:
    return torch.randn(*size).requires_grad_()


def differentiated(method: str, *args: Any) -> Callable[[OpSet], Callable[[], None]]:
    """Forward and backward of one op with a random upstream gradient, memory laid out as its caller lays it out."""

    def bind(ops: OpSet) -> Callable[[], None]:
        def once() -> None:
            outputs = getattr(ops, method)(*args)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            torch.autograd.grad(outputs, leaves, upstream(outputs))

        return once

    leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    drawn: list[Tensor] = []

    def upstream(outputs: tuple[Tensor, ...]) -> list[Tensor]:
        if not drawn:
            drawn.extend(torch.randn(o.shape) for o in outputs)
        return drawn

    return bind


def add_norm(s: Mapping[str, int]) -> Callable[[OpSet], Callable[[], None]]:
    x, residual = leaf(s["S"], s["d"]), leaf(s["S"], s["d"])
    return differentiated("add_norm", x, residual, leaf(s["d"]), 1e-6)


def mla_ingress(s: Mapping[str, int]) -> Callable[[OpSet], Callable[[], None]]:
    q = leaf(s["B"], s["T"], s["H"], s["D_n"] + s["D_r"])
    kv = leaf(s["B"], s["T"], s["H"], s["D_n"] + s["D_v"])
    cos, sin = rope_tables(s["T"], s["D_r"], 500_000.0)
    return differentiated("mla_ingress", q, kv, leaf(s["B"], s["T"], s["D_r"]), cos, sin)


def attention_core(s: Mapping[str, int]) -> Callable[[OpSet], Callable[[], None]]:
    q, k = (leaf(s["B"], heads, s["T"], s["D_qk"]) for heads in (s["H"], s["H_kv"]))
    v = torch.randn(s["B"], s["T"], s["H_kv"], s["D_v"]).transpose(1, 2).requires_grad_()
    starts = torch.rand(s["B"], s["T"]) < 8 / s["T"]  # eight documents a row
    document_ids = starts.to(torch.int64).cumsum(dim=1) if s["documents"] else None
    return differentiated("attention_core", q, k, v, s["D_qk"] ** -0.5, document_ids)


def linear_cross_entropy(s: Mapping[str, int]) -> Callable[[OpSet], Callable[[], None]]:
    hidden = leaf(s["S"], s["d"])
    weight = (torch.randn(s["W"], s["d"]) * s["d"] ** -0.5).requires_grad_()  # logits of size 1
    targets = torch.randint(0, s["W"], (s["S"],))
    return differentiated("linear_cross_entropy", hidden, weight, targets)


def optimizer_step(s: Mapping[str, int]) -> Callable[[OpSet], Callable[[], None]]:
    def bind(ops: OpSet) -> Callable[[], None]:
        params = [
            torch.nn.Parameter(torch.randn(s["numel"] // s["num_tensors"]))
            for _ in range(s["num_tensors"])
        ]
        for p in params:
            p.grad = torch.randn_like(p)
        groups = [{"params": params, "weight_decay": 0.1}]
        return ops.optimizer_step(groups, 1e-3, (0.9, 0.95), 1e-8).step

    return bind


INPUTS = {
    "add_norm": add_norm,
    "mla_ingress": mla_ingress,
    "attention_core": attention_core,
    "linear_cross_entropy": linear_cross_entropy,
    "optimizer_step": optimizer_step,
}


def measure(
    op: str, dims: Mapping[str, int], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Backend → seconds of each call, backends taking turns."""
    problem = Problem(device_type="cpu", dtype="fp32", dims=dims)
    offers = capabilities("cpu")
    bind = INPUTS[op](dims)
    calls = {
        b.name: bind(OpSet.resolve({op: (b.name,)}, {op: problem}, offers))
        for b in SPECS[op].backends
        if rejection(b, problem, offers) is None
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(NUM_WARMUP + repeats):
        names = list(calls) if turn % 2 else list(reversed(calls))
        for name in names:
            start = clock()
            calls[name]()
            duration = clock() - start
            if turn >= NUM_WARMUP:
                seconds[name].append(duration)
    return seconds


def report(op: str, shape: str, dims: Mapping[str, int], seconds: dict[str, list[float]]) -> None:
    control = statistics.median(seconds[CONTROLS[op]])
    print(f"\n{op}  {shape}  {' '.join(f'{k}={v}' for k, v in dims.items())}  fp32")
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4)
        ratio = median / control
        print(
            f"  {name:18} {median * 1e3:9.3f} ms  [{low * 1e3:.3f}, {high * 1e3:.3f}]"
            f"  × {ratio:.2f} vs {CONTROLS[op]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--op", nargs="*", choices=list(INPUTS), default=list(INPUTS))
    parser.add_argument("--shape", default="nam56r-tiny", help="name in lanewise.ops.shapes")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every duration here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    record: dict[str, Any] = {
        "torch": torch.__version__,
        "num_threads": arguments.threads,
        "clock": clock.__name__,
        "shape": arguments.shape,
        "duration_seconds": {},
    }
    for op in arguments.op:
        dims = SHAPES[op][arguments.shape]
        seconds = measure(op, dims, arguments.repeats, clock)
        record["duration_seconds"][op] = seconds
        report(op, arguments.shape, dims, seconds)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
