"""Errors and failed checks as facts, and that every way a run can end writes its receipt."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.exc

from lanewise.errors import DataError, RunFailed, StoreError
from lanewise.receipts.failures import CHECK_FAMILIES, FailureFamily
from lanewise.receipts.schema import RunReceipt
from lanewise.receipts.store import Store
from lanewise.receipts.validate import receipt_file_faults
from lanewise.train.data.packing import Loader
from lanewise.train.failure import Circumstances, failure_of, in_words
from lanewise.train.run import Run
from lanewise.train.session import StopRequest, train_to
from tests.train.runs import micro_request

CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which "
    "512.00 MiB is free. Including non-PyTorch memory, this process has 78.00 GiB memory in use."
)


class CompilerGaveUp(torch._dynamo.exc.TorchDynamoException):
    """What torch raises when a graph cannot be compiled."""


def refused_by_the_cpu() -> RuntimeError:
    try:
        torch.empty(2**55)
    except RuntimeError as error:
        return error
    raise AssertionError("a machine with 128 PiB of memory")


def disk_error(cause: BaseException) -> StoreError:
    error = StoreError("cannot write /somewhere")
    error.__cause__ = cause
    return error


def test_memory_refused_by_the_cpu_says_how_much_was_asked() -> None:
    known = Circumstances(step=3, peak_bytes=7, free_bytes=5)
    found = failure_of(refused_by_the_cpu(), known)
    assert found.model_dump() == {
        "family": FailureFamily.OUT_OF_MEMORY,
        "device": "cpu",
        "asked_bytes": 2**55 * 4,
        "free_bytes": 5,
        "peak_bytes": 7,
        "step": 3,
    }


def test_memory_refused_by_cuda_says_what_was_free() -> None:
    found = failure_of(torch.OutOfMemoryError(CUDA_TEXT))
    assert found.family is FailureFamily.OUT_OF_MEMORY
    facts = found.model_dump()
    assert (facts["device"], facts["asked_bytes"], facts["free_bytes"]) == (
        "cuda",
        int(2.5 * 2**30),
        512 * 2**20,
    )


@pytest.mark.parametrize(
    ("error", "family", "fact"),
    [
        (MemoryError(), "out_of_memory", ("asked_bytes", None)),
        (CompilerGaveUp("no"), "compile", ("cache_state", "unused")),
        (disk_error(OSError(errno.ENOSPC, "full")), "disk", ("cause", "ENOSPC")),
        (disk_error(ValueError()), "disk", ("cause", None)),
        (OSError(errno.EDQUOT, "quota"), "disk", ("cause", "EDQUOT")),
        (DataError("gone"), "data", ("step", None)),
        (ZeroDivisionError("a bug"), "defect", ("error_type", "ZeroDivisionError")),
        (RuntimeError("shapes do not match"), "defect", ("error_type", "RuntimeError")),
    ],
)
def test_errors_by_family(error: Exception, family: str, fact: tuple[str, Any]) -> None:
    found = failure_of(error)
    assert found.family == family
    name, value = fact
    assert getattr(found, name) == value
    assert "/somewhere" not in in_words(found, error)
    assert "\n" not in in_words(found, error)


def test_an_error_wrapped_by_the_checkpoint_library_keeps_its_cause() -> None:
    wrapped = RuntimeError("rank 0 failed")
    wrapped.failures = {0: (OSError(errno.ENOSPC, "full"), None)}  # type: ignore[attr-defined]
    assert failure_of(disk_error(wrapped)).model_dump()["cause"] == "ENOSPC"


def trained(run: Run, steps: int = 12) -> Exception | None:
    try:
        train_to(run, steps, stop=StopRequest(), on_step=lambda result: None)
    except Exception as error:  # noqa: BLE001  # the test looks at whatever was raised
        return error
    return None


def only_receipt(folder: Path) -> RunReceipt:
    store = Store(str(folder / "store"))
    (file,) = store.receipt_files()
    assert receipt_file_faults(f"{store.root}/{file.name}") == []
    return store.read_receipt(f"{store.root}/{file.name}")


def fails_at(monkeypatch: pytest.MonkeyPatch, step: int, error: Exception) -> None:
    original = Run.step

    def step_or_fail(self: Run) -> object:
        if self.next_step == step:
            raise error
        return original(self)

    monkeypatch.setattr(Run, "step", step_or_fail)


def test_a_run_out_of_memory_leaves_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at(monkeypatch, 2, refused_by_the_cpu())
    error = trained(Run(micro_request(tmp_path)))
    assert isinstance(error, RunFailed)
    receipt = only_receipt(tmp_path)
    assert receipt.receipt_id[7:19] in str(error)
    assert "lower batch.micro_batch_size" in str(error)
    outcome = receipt.outcome
    assert (outcome.status, outcome.validity) == ("aborted", "invalid")
    assert outcome.failure_family is FailureFamily.OUT_OF_MEMORY
    facts = outcome.failure.model_dump() if outcome.failure else {}
    assert (facts["asked_bytes"], facts["step"]) == (2**57, 2)
    assert facts["peak_bytes"] > 2**20


def test_a_compiler_that_gives_up_leaves_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gives_up(*_: object, **__: object) -> None:
        raise CompilerGaveUp("a graph break")

    monkeypatch.setattr("lanewise.train.run.trigger_compilation", gives_up)
    monkeypatch.setattr(
        "lanewise.train.run.compile_regions.compile_blocks", lambda blocks, offered: None
    )
    with pytest.raises(RunFailed, match=r"features\.regional_compile=off; receipt"):
        Run(micro_request(tmp_path, features={"regional_compile": "on"}))
    outcome = only_receipt(tmp_path).outcome
    assert outcome.failure_family is FailureFamily.COMPILE
    assert outcome.failure is not None
    assert outcome.failure.model_dump()["graph_breaks"] is not None


def test_a_disk_that_refuses_a_checkpoint_leaves_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise disk_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    monkeypatch.setattr("lanewise.train.run.checkpoint.save", full)
    request = micro_request(
        tmp_path, checkpoint_dir=str(tmp_path / "c"), checkpoint_interval_steps=3
    )
    assert isinstance(trained(Run(request)), StoreError)
    outcome = only_receipt(tmp_path).outcome
    assert outcome.failure_family is FailureFamily.DISK
    assert outcome.error == "the disk refused a file (ENOSPC)"


def test_a_full_store_takes_no_receipt_and_the_error_speaks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at(monkeypatch, 1, refused_by_the_cpu())
    run = Run(micro_request(tmp_path))
    (tmp_path / "store").write_text("a file where a folder is needed")
    error = trained(run)
    assert isinstance(error, RunFailed)
    assert "receipt" not in str(error)


def test_data_that_fails_in_mid_run_leaves_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_self: Loader) -> object:
        raise DataError("the file was truncated")

    monkeypatch.setattr(Loader, "next", gone)
    assert isinstance(trained(Run(micro_request(tmp_path))), DataError)
    assert only_receipt(tmp_path).outcome.failure_family is FailureFamily.DATA


def test_a_defect_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at(monkeypatch, 1, ZeroDivisionError("a bug"))
    assert isinstance(trained(Run(micro_request(tmp_path))), ZeroDivisionError)
    assert only_receipt(tmp_path).outcome.failure_family is FailureFamily.DEFECT


def test_a_diverged_run_says_where(tmp_path: Path) -> None:
    run = Run(micro_request(tmp_path))
    for _ in range(2):
        run.step()
    with torch.no_grad():
        run.model.head.fill_(float("nan"))
    assert trained(run) is None
    receipt = only_receipt(tmp_path)
    failure = receipt.outcome.failure
    assert failure is not None
    facts = failure.model_dump()
    series = Store(str(tmp_path / "store")).read_steps(receipt.receipt_id)
    assert series is not None
    assert (facts["family"], facts["step"], facts["loss"]) == ("numerics", 2, None)
    assert facts["last_finite_loss"] == series.loss[1]


def test_a_stopped_run_says_by_what(tmp_path: Path) -> None:
    stop = StopRequest()

    def after(result: Any) -> None:
        if result.step == 4:
            stop.reason = "SIGTERM"

    train_to(Run(micro_request(tmp_path)), 12, stop=stop, on_step=after)
    failure = only_receipt(tmp_path).outcome.failure
    assert failure is not None
    assert failure.model_dump() == {
        "family": FailureFamily.INTERRUPTED,
        "signal": "SIGTERM",
        "steps_taken": 5,
        "steps_asked": 12,
    }


def test_every_check_of_a_receipt_has_a_family(tmp_path: Path) -> None:
    trained(Run(micro_request(tmp_path)))
    receipt = only_receipt(tmp_path)
    assert {check.name for check in receipt.outcome.checks} <= CHECK_FAMILIES.keys()
    if receipt.outcome.validity == "valid":
        assert receipt.outcome.failure_family is None
    else:
        assert receipt.outcome.failure_family is FailureFamily.UNSTEADY
