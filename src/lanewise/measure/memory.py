"""Peak memory of one training step on a CPU, by tensor bytes (deterministic) and by resident set (what the system saw)."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

CPU_METHOD: Final = (
    "tensor storages alive before one step + peak of torch.profiler's CPU allocation events during it; "
    "peak_device_used is the process's peak resident set"
)
"""What `Memory.method` of a CPU receipt says."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Tensor bytes around one step.

    Attributes:
        live_bytes: distinct storages alive before it: parameters, gradients, optimizer state, buffers.
        added_bytes: most that the step had allocated on top at any moment, caching not included.
    """

    live_bytes: int
    added_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Peak tensor bytes: an upper bound where the step frees storages that were alive before it."""
        return self.live_bytes + self.added_bytes


def measure_cpu_step(step: Callable[[], object], live: Iterable[torch.Tensor]) -> StepMemory:
    """Run `step` once under the profiler and count CPU tensor memory.

    The profiler slows the step; run it outside the timed window. Frees of storages allocated before the step are not
    seen, so start from `zero_grad(set_to_none=True)` if the step begins by dropping gradients.

    Args:
        step: one training step; its exceptions pass through.
        live: tensors alive before it (`live_tensors`).
    """
    from torch.profiler import ProfilerActivity, profile

    live_bytes = storage_bytes(live)
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    with silent_stderr():
        profiler.start()
    try:
        step()
    finally:
        with silent_stderr():
            profiler.stop()
    # Kineto's own events, because torch's summaries fold allocations into the ops that made them.
    results: Any = profiler.profiler.kineto_results if profiler.profiler else None
    if results is None:
        raise RuntimeError("torch.profiler kept no events; this torch was built without Kineto")
    allocations = [
        event
        for event in results.events()
        if event.name() == "[memory]" and event.device_type().name == "CPU"
    ]
    allocations.sort(key=lambda event: event.start_ns())
    added_bytes = _peak(event.nbytes() for event in allocations)
    return StepMemory(live_bytes=live_bytes, added_bytes=added_bytes)


def live_tensors(
    model: torch.nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()
) -> Iterator[torch.Tensor]:
    """Parameters, their gradients, buffers, and every tensor of the optimizers' state."""
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from model.buffers()
    for optimizer in optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if hasattr(value, "untyped_storage"))


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind `tensors`; views and tied weights count once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def peak_rss_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Largest resident set of this process so far: VmHWM on Linux, getrusage elsewhere.

    Args:
        status: the process's status file; where it does not exist, getrusage answers.
    """
    with contextlib.suppress(FileNotFoundError):
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # ru_maxrss is in KiB, except on macOS, where it is in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _peak(changes: Iterable[int]) -> int:
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Send the process's stderr nowhere: Kineto writes lines on start and stop that no Python setting turns off."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
