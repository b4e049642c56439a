"""What lies between two timed steps, piece by piece: `python -m benchmarks.readout LANE [--device cuda] [--set …] [--json PATH]`.

Every piece is clocked where it runs, in real training steps, because after a step caches and the device's queue are as
they are then and in no loop of its own. What no piece names is printed as such. On a GPU alternatives of the pieces are
clocked too, each as the first thing after a step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from lanewise.lane.load import load_lane
from lanewise.lane.machine import choose_device, detect_machine_class
from lanewise.lane.resolve import resolve
from lanewise.train import loop as loop_module
from lanewise.train.loop import manual_gc
from lanewise.train.request import RunRequest
from lanewise.train.run import Run

TIMED_STEP, BETWEEN, UNNAMED = "timed step", "between two steps", "named by no piece"
READOUT = ("number of graphs", "gradient norm", "expert loads", "losses of layers")
EVENTS_LESS_WALL = "device events less wall time"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One piece over the steps that count, microseconds a step."""

    piece: str
    median: float
    mean: float
    largest: float


class Pieces:
    """Clocks named pieces; a step's calls of one piece are added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._step: dict[str, float] = defaultdict(float)

    def clocked(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, clocked whenever it is called."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start_ns = time.perf_counter_ns()
            try:
                return work(*args, **kwargs)
            finally:
                self._step[name] += (time.perf_counter_ns() - start_ns) / 1e9

        return call

    def add(self, name: str, seconds: float) -> None:
        """Time that was clocked elsewhere."""
        self._step[name] += seconds

    def so_far(self, names: Iterable[str]) -> float:
        """Seconds of these pieces in the step that is open."""
        return sum(self._step.get(name, 0.0) for name in names)

    def end_step(self) -> None:
        """Close a step."""
        for name, seconds in self._step.items():
            self.seconds[name].append(seconds)
        self._step.clear()

    def forget(self) -> None:
        """Start anew, after warm-up."""
        self.seconds.clear()


class _Clocked:
    """A tensor one of whose methods is clocked; the loop calls nothing else of it."""

    def __init__(self, tensor: torch.Tensor, method: str, pieces: Pieces, name: str) -> None:
        setattr(self, method, pieces.clocked(name, getattr(tensor, method)))


def instrument(run: Run, pieces: Pieces) -> None:
    """Clock what a run does around its steps; the run is good for nothing else afterwards."""
    watch, loop = run._watch, run._loop
    if watch._tensor_pipes is not None:
        _wrap(watch._tensor_pipes, "start", pieces, "once: NVML and its counters")
    _wrap(watch.meters, "start", pieces, "once: meters of the device")
    if watch._host is not None:
        _wrap(watch._host, "start", pieces, "once: counters of the host")
    events = getattr(watch.meters, "_events", None)
    if events is not None:
        _wrap(events, "before_step", pieces, "event at the start")
        _wrap(events, "after_step", pieces, "event at the end")
        _wrap(watch.meters, "_read_reserved", pieces, "allocator counters")
    _wrap(loop, "_graphs_compiled", pieces, "number of graphs")
    _wrap(run.log, "take", pieces, "writing the step down")
    clip, update, step = loop._clip, loop.model.update_expert_bias, loop.step

    def clocked_step() -> Any:
        start_ns, readout_ns = time.perf_counter_ns(), loop.readout_ns
        result = step()
        wall_seconds = (time.perf_counter_ns() - start_ns) / 1e9
        readout_seconds = (loop.readout_ns - readout_ns) / 1e9
        pieces.add(
            "entering and leaving the step",
            wall_seconds - result.duration_seconds - readout_seconds,
        )
        pieces.add("rest of the read-out", readout_seconds - pieces.so_far(READOUT))
        return result

    def clocked_clip() -> Any:
        norm = clip()
        return norm if norm is None else _Clocked(norm, "item", pieces, "gradient norm")

    def clocked_update() -> Any:
        loads = update()
        return loads if loads is None else _Clocked(loads, "cpu", pieces, "expert loads")

    loop.step = clocked_step
    loop._clip = clocked_clip
    loop.model.update_expert_bias = clocked_update


def _wrap(owner: Any, name: str, pieces: Pieces, piece: str) -> None:
    setattr(owner, name, pieces.clocked(piece, getattr(owner, name)))


def measure(
    run: Run, *, warmup: int, steps: int, alternatives: Mapping[str, Callable[[], object]]
) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows of the pieces, of what is paid once, and of the alternatives.

    Args:
        run: built, no step taken.
        warmup: steps before those that count.
        steps: that count.
        alternatives: name → what could stand for a piece; one is called after every further step.
    """
    pieces, read_layers = Pieces(), loop_module._read_layers
    instrument(run, pieces)
    loop_module._read_layers = pieces.clocked("losses of layers", read_layers)
    try:
        with manual_gc():
            run.step()
            pieces.end_step()
            once = [
                _row(name, seconds) for name, seconds in pieces.seconds.items() if "once" in name
            ]
            for _ in range(warmup):
                run.step()
            pieces.end_step()
            pieces.forget()
            first = len(run.log.between_seconds)
            for _ in range(steps):
                run.step()
                pieces.end_step()
            durations = run.log.recorder.durations_seconds[first:]
            between = run.log.between_seconds[first:]
            others = _alternatives(run, alternatives, each=max(5, steps // 10))
    finally:
        loop_module._read_layers = read_layers
    rows = [_row(TIMED_STEP, durations), _row(BETWEEN, between)]
    rows += sorted((_row(*piece) for piece in pieces.seconds.items()), key=lambda row: -row.mean)
    named = [sum(seconds) for seconds in zip(*pieces.seconds.values(), strict=True)]
    rows.append(_row(UNNAMED, [b - n for b, n in zip(between, named, strict=True)]))
    by_device = run._watch.meters.step_seconds()
    if not isinstance(by_device, str):
        on_device = by_device[first : first + steps]
        rows.append(
            _row(EVENTS_LESS_WALL, [d - w for d, w in zip(on_device, durations, strict=True)])
        )
    return rows, once, others


def _alternatives(
    run: Run, alternatives: Mapping[str, Callable[[], object]], *, each: int
) -> list[Row]:
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(each):
        for name, work in alternatives.items():
            run.step()
            start_ns = time.perf_counter_ns()
            work()
            seconds[name].append((time.perf_counter_ns() - start_ns) / 1e9)
    return [_row(name, found) for name, found in seconds.items()]


def _row(piece: str, seconds: Sequence[float]) -> Row:
    return Row(
        piece=piece,
        median=1e6 * median(seconds),
        mean=1e6 * fmean(seconds),
        largest=1e6 * max(seconds),
    )


def cuda_alternatives() -> dict[str, Callable[[], object]]:
    """What a piece costs on a GPU, and what could stand for it."""
    cuda = torch.cuda
    scalar, loads = torch.ones((), device="cuda"), torch.ones(8, 64, device="cuda")
    pinned = torch.empty((), pin_memory=True)
    made = [cuda.Event(enable_timing=True) for _ in range(2)]
    for event in made:
        event.record()
    cuda.synchronize()

    def through_pinned() -> float:
        pinned.copy_(scalar, non_blocking=True)
        cuda.current_stream().synchronize()
        return pinned.item()

    return {
        "nothing": lambda: None,
        "a new event, recorded": lambda: cuda.Event(enable_timing=True).record(),
        "an old event, recorded": lambda: made[1].record(),
        "elapsed_time of two events": lambda: made[0].elapsed_time(made[0]),
        "memory_stats_as_nested_dict": cuda.memory_stats_as_nested_dict,
        "memory_reserved": cuda.memory_reserved,
        "item of a scalar": scalar.item,
        "item through pinned memory": through_pinned,
        "cpu of 512 numbers": loads.cpu,
        "one small kernel, launched": lambda: scalar.add_(0.0),
        "synchronize an idle device": cuda.synchronize,
    }


def build(
    lane: str, overrides: Iterable[str], device: str, store_root: str, data: str | None = None
) -> Run:
    """A run that no campaign watches."""
    device_type = choose_device(device)  # type: ignore[arg-type]
    resolved = resolve(
        load_lane(lane, list(overrides)),
        machine_class=detect_machine_class(device_type),
        device_type=device_type,
        mode="train",
    )
    return Run(RunRequest(resolved=resolved, store_root=store_root, num_threads=1, data_path=data))


def print_rows(title: str, rows: Sequence[Row]) -> None:
    if not rows:
        return
    width = max(32, *(len(row.piece) for row in rows))
    print(f"{title:{width}}  {'median':>12}  {'mean':>12}  {'largest':>12}   µs")
    for row in rows:
        print(f"{row.piece:{width}}  {row.median:12.1f}  {row.mean:12.1f}  {row.largest:12.1f}")
    print()


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, and keep them as JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lane")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data", help="text, JSONL or Parquet; replaces the lane's data")
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="PATH")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = build(asked.lane, asked.overrides, asked.device, folder, asked.data)
        on_gpu = run.request.resolved.device_type == "cuda"
        rows, once, others = measure(
            run,
            warmup=asked.warmup,
            steps=asked.steps,
            alternatives=cuda_alternatives() if on_gpu else {},
        )
    print_rows("a step", rows)
    print_rows("once a run", once)
    print_rows("first thing after a step", others)
    if asked.json is not None:
        document = {
            "lane": run.request.resolved.canonical_name,
            "torch": torch.__version__,
            "steps": asked.steps,
            **{
                name: [asdict(row) for row in found]
                for name, found in (("step", rows), ("once", once), ("alternatives", others))
            },
        }
        asked.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
