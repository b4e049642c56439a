import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lanewise.cli.main import run
from lanewise.lane import machine as machine_module
from lanewise.measure import ceilings as ceilings_module
from lanewise.measure.ceilings import Ceilings
from lanewise.ops import dispatch, registry
from lanewise.receipts.ceilings import cite
from lanewise.receipts.machine import collect_machine
from lanewise.receipts.store import Store

MEASURED = Ceilings(
    copy_bytes_per_second=5.55e9,
    matmul_flops_per_second=1.234e11,
    dtype="fp32",
    num_threads=3,
    copy_buffer_bytes=4096,
    matmul_size=64,
    num_samples={"copy": 3, "matmul": 3},
)


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder the ceilings are kept in."""
    monkeypatch.setenv("LANEWISE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Instead of measuring, note what was asked."""
    calls: list[tuple[str, int]] = []

    def measure(device_type: str, num_threads: int, *, clock: object) -> Ceilings:
        calls.append((device_type, num_threads))
        return dataclasses.replace(MEASURED, num_threads=num_threads)

    monkeypatch.setattr(ceilings_module, "measure_ceilings", measure)
    return calls


def test_it_prints_machine_backends_and_ceilings(
    capsys: pytest.CaptureFixture[str], asked: list[tuple[str, int]]
):
    assert run(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert machine_module.detect_machine_class("cpu") in out
    for spec in registry.SPECS.values():
        for backend in spec.backends:
            assert f"{spec.name} " in out
            assert backend.name in out
    assert "copy 5.5 GB/s · fp32 matmul 123 GFLOP/s, measured on 1 thread\n" in out
    assert asked == [("cpu", threads) for threads in sorted({1, machine_module.usable_cores()})]
    assert err == ""


def test_quick_measures_nothing(capsys: pytest.CaptureFixture[str], asked: list[tuple[str, int]]):
    assert run(["doctor", "--quick"]) == 0
    assert "ceilings" not in capsys.readouterr().out
    assert asked == []


def test_json_holds_the_same_as_one_document(capsys: pytest.CaptureFixture[str]):
    assert run(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert {each["copy_bytes_per_second"] for each in document["ceilings"]} == {5.55e9}
    assert document["kept"].startswith("kept in ")
    assert document["machine"]["usable_cores"] == machine_module.usable_cores()
    assert document["machine"]["python"].startswith("3.")
    rows = {(row["op"], row["backend"]) for row in document["backends"]}
    assert rows == {
        (spec.name, backend.name) for spec in registry.SPECS.values() for backend in spec.backends
    }
    assert all(row["available"] == (row["reason"] is None) for row in document["backends"])


def test_quick_json_says_that_no_ceiling_is_known(capsys: pytest.CaptureFixture[str]):
    assert run(["doctor", "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ceilings"] is None


def test_what_cannot_run_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dispatch, "_cxx_compiler", lambda: None)
    monkeypatch.setattr(registry, "installation_rejection", lambda *_: "the moon is full")
    assert run(["doctor", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "no: the moon is full" in out
    assert "none: regional_compile cannot be measured; install g++ or set CXX" in out


def test_a_gpu_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        machine_module, "ask_nvidia_smi", lambda _fields: "NVIDIA H100 80GB HBM3, 81559"
    )
    assert run(["doctor", "--quick", "--device", "cpu"]) == 0
    assert "h100-sxm-80gb" in capsys.readouterr().out


def test_the_ceilings_are_kept_for_runs_on_this_machine(own_store: Path):
    assert run(["doctor"]) == 0
    machine = collect_machine(machine_module.detect_machine_class("cpu"))
    found = Store(own_store).read_ceilings(machine, "fp32", 1)
    assert found is not None
    assert found.matmul_flops_per_second == 1.234e11
    assert found.machine == machine
    cited = cite(found, at=datetime.now(UTC).isoformat())
    assert 0 <= cited.age_seconds < 600
    assert Store(own_store).read_ceilings(machine, "bf16", 1) is None


def test_a_store_that_cannot_be_written_does_not_stop_the_doctor(
    capsys: pytest.CaptureFixture[str], own_store: Path
):
    own_store.write_text("a file where a folder is needed")
    assert run(["doctor"]) == 0
    assert "not kept: cannot write" in capsys.readouterr().out
