import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lanewise.measure.memory import (
    StepMemory,
    live_tensors,
    measure_cpu_step,
    peak_rss_bytes,
    storage_bytes,
)

KIB = 1024


def floats(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes // 4)


def test_peak_is_the_highest_level_not_the_sum():
    def step() -> None:
        first = floats(100 * KIB)
        second = floats(300 * KIB)
        del first
        third = floats(50 * KIB)
        del second, third
        floats(200 * KIB)

    memory = measure_cpu_step(step, [])
    assert memory == StepMemory(live_bytes=0, added_bytes=400 * KIB)


def test_live_tensors_are_added():
    kept = floats(64 * KIB)
    memory = measure_cpu_step(lambda: floats(16 * KIB), [kept])
    assert (memory.live_bytes, memory.peak_bytes) == (64 * KIB, 80 * KIB)


def test_a_training_step_counts_activations_gradients_and_state_the_same_every_time():
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 256, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(128, 64)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    weights = 64 * 256 * 4
    assert storage_bytes(live_tensors(model, [optimizer])) == 2 * weights
    one, other = (measure_cpu_step(step, live_tensors(model, [optimizer])) for _ in range(2))
    assert one == other
    # At the least: the output [128, 256], its gradient, and the gradient of the weight.
    assert one.added_bytes >= 2 * 128 * 256 * 4 + weights


def test_views_and_tied_weights_count_once():
    base = floats(8 * KIB)
    assert storage_bytes([base, base[10:], base.view(2, -1), base.detach()]) == 8 * KIB


def test_gradients_and_buffers_are_live():
    model = torch.nn.BatchNorm1d(4)
    model(torch.randn(3, 4)).sum().backward()
    names = 2 * 4 * 4 + 2 * 4 * 4 + 2 * 4 * 4 + 8  # weight, bias; their gradients; mean, var; count
    assert storage_bytes(live_tensors(model)) == names


def test_the_steps_own_error_passes_through_and_stderr_comes_back(
    capfd: pytest.CaptureFixture[str],
):
    def step() -> None:
        sys.stderr.write("said in the step\n")
        raise LookupError("from the step")

    with pytest.raises(LookupError, match="from the step"):
        measure_cpu_step(step, [])
    sys.stderr.write("said after it\n")
    assert capfd.readouterr().err == "said in the step\nsaid after it\n"


def test_peak_rss_reads_vmhwm_in_kib(tmp_path: Path):
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 5 kB\n", encoding="ascii")
    assert peak_rss_bytes(status) == 2 * KIB * KIB


def test_peak_rss_without_proc_asks_getrusage(tmp_path: Path):
    assert 1_000_000 < peak_rss_bytes(tmp_path / "nothing") < 1 << 40
    assert 1_000_000 < peak_rss_bytes() < 1 << 40


def test_importing_any_module_of_measure_imports_no_torch():
    code = (
        "import importlib, pkgutil, sys, lanewise.measure as package\n"
        "for found in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'lanewise.measure.{found.name}')\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
