"""The child side of the protocol, over real pipes."""

import multiprocessing
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from lanewise.receipts.store import Store
from lanewise.train.entry import serve
from lanewise.train.request import RunRequest
from tests.models.micro import micro_lane
from tests.train.runs import experiment, micro_request

PATIENCE_SECONDS = 60


class Parent:
    """The lab's end of a pipe whose child runs in a thread of this process."""

    def __init__(self, request_json: str, *, num_threads: int = 1) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.thread = threading.Thread(
            target=serve,
            args=(request_json, theirs),
            kwargs={"num_threads": num_threads, "start_seconds": 0.0, "now": lambda: 1.5},
        )
        self.thread.start()

    def receive(self) -> dict[str, Any]:
        assert self.connection.poll(PATIENCE_SECONDS), "the child gave no answer"
        message = self.connection.recv()
        assert isinstance(message, dict)
        return message

    def step(self, count: int) -> dict[str, Any]:
        self.connection.send({"command": "step", "count": count})
        return self.receive()

    def finish(self, **fields: Any) -> dict[str, Any]:
        command = {"command": "finish", "warmup": None}
        self.connection.send({**command, **fields})
        return self.receive()

    def wait_end(self) -> None:
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()


def lockstep(folder: Path, **fields: Any) -> RunRequest:
    return micro_request(folder, **{"steps": None, "experiment": experiment(), **fields})


def receipts(folder: Path) -> list[Any]:
    return list(Store(str(folder / "store")).iter_receipts())


def test_lockstep_from_ready_to_receipt(tmp_path: Path) -> None:
    parent = Parent(lockstep(tmp_path).model_dump_json())
    ready = parent.receive()
    assert (ready["event"], ready["setup_seconds"]) == ("ready", 1.5)
    first, second = parent.step(1), parent.step(3)
    assert [len(m["duration_seconds"]) for m in (first, second)] == [1, 3]
    assert all(value > 0 for value in second["duration_seconds"])
    assert len(second["loss"]) == len(second["tags"]) == 3
    finished = parent.finish(
        warmup={"rule": "given", "steps": 1, "steady": True, "reason": "larger of both arms"}
    )
    parent.wait_end()
    (receipt,) = receipts(tmp_path)
    assert finished["event"] == "finished"
    assert finished["receipt_id"] == receipt.receipt_id
    assert Path(finished["receipt_path"]).is_file()
    assert (finished["validity"], finished["reasons"]) == ("valid", [])
    assert receipt.timing.warmup.reason == "larger of both arms"
    assert receipt.timing.step_duration_seconds.count == 3
    assert receipt.experiment == experiment()
    assert receipt.goodput.badput_seconds["turn_wait"] > 0


def test_an_unsteady_block_makes_an_invalid_receipt(tmp_path: Path) -> None:
    parent = Parent(lockstep(tmp_path).model_dump_json())
    parent.receive()
    parent.step(2)
    finished = parent.finish(
        warmup={"rule": "given", "steps": 2, "steady": False, "reason": "steps drift by +3 %"}
    )
    parent.wait_end()
    assert finished["validity"] == "invalid"
    assert finished["reasons"] == ["steady_state: steps drift by +3 %"]


def test_the_child_detects_its_own_warmup_when_not_told(tmp_path: Path) -> None:
    parent = Parent(lockstep(tmp_path).model_dump_json())
    parent.receive()
    parent.step(3)
    finished = parent.finish()
    parent.wait_end()
    assert finished["validity"] == "invalid"  # three steps are too few to be steady
    assert "8 are needed" in finished["reasons"][0]


def test_a_run_of_fixed_length_needs_no_commands(tmp_path: Path) -> None:
    parent = Parent(micro_request(tmp_path, steps=4).model_dump_json())
    assert parent.receive()["event"] == "ready"
    assert parent.receive()["event"] == "finished"
    parent.wait_end()
    assert receipts(tmp_path)[0].throughput.tokens_real == 4 * 20


@pytest.mark.parametrize("steps", [None, 100_000])
def test_abort_ends_the_child_without_a_receipt(tmp_path: Path, steps: int | None) -> None:
    parent = Parent(lockstep(tmp_path, steps=steps).model_dump_json())
    parent.receive()
    parent.connection.send({"command": "abort"})
    parent.wait_end()
    assert receipts(tmp_path) == []
    with pytest.raises(EOFError):
        parent.connection.recv()


@pytest.mark.parametrize("steps", [None, 100_000])
def test_a_parent_that_goes_away_is_an_abort(tmp_path: Path, steps: int | None) -> None:
    parent = Parent(lockstep(tmp_path, steps=steps).model_dump_json())
    parent.receive()
    parent.connection.close()
    parent.wait_end()
    assert receipts(tmp_path) == []


def failure(parent: Parent) -> dict[str, Any]:
    message = parent.receive()
    parent.wait_end()
    assert message["event"] == "failed"
    assert "\n" not in message["error"]
    return message


def test_bad_data_is_a_failed_event_with_its_exit_code(tmp_path: Path) -> None:
    request = lockstep(tmp_path, data_path=str(tmp_path / "nowhere.txt"))
    message = failure(Parent(request.model_dump_json()))
    assert message["exit_code"] == 2
    assert "nowhere.txt" in message["error"]
    assert message["failure"] is None


def test_an_unbuilt_lane_is_a_failed_event(tmp_path: Path) -> None:
    request = lockstep(tmp_path, lane=micro_lane(topology__dp_shard=2))
    assert "topology dp2 (2 processes)" in failure(Parent(request.model_dump_json()))["error"]


def test_a_backend_that_cannot_run_is_a_failed_event(tmp_path: Path) -> None:
    request = lockstep(tmp_path, lane=micro_lane(ops={"ssm_scan": "chunked.cuda"}))
    message = failure(Parent(request.model_dump_json()))
    assert message["exit_code"] == 2
    assert "chunked.cuda" in message["error"]


def test_a_defect_is_a_failed_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lanewise.train.run import Run

    def broken(_self: Run) -> None:
        raise ZeroDivisionError("a bug\nof two lines")

    monkeypatch.setattr(Run, "step", broken)
    parent = Parent(lockstep(tmp_path).model_dump_json())
    parent.receive()
    parent.connection.send({"command": "step", "count": 1})
    message = failure(parent)
    assert message["exit_code"] == 70
    assert message["error"] == "defect in lanewise: ZeroDivisionError: a bug of two lines"
    assert message["failure"] == {"family": "defect", "error_type": "ZeroDivisionError"}


def test_memory_that_runs_out_is_a_failed_event_with_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lanewise.train.run import Run

    def hungry(_self: Run) -> None:
        raise MemoryError

    monkeypatch.setattr(Run, "step", hungry)
    parent = Parent(lockstep(tmp_path).model_dump_json())
    parent.receive()
    parent.connection.send({"command": "step", "count": 1})
    message = failure(parent)
    assert message["exit_code"] == 5
    assert message["failure"]["family"] == "out_of_memory"
    assert "lower batch.micro_batch_size" in message["error"]


def test_nonsense_is_refused(tmp_path: Path) -> None:
    parent = Parent(lockstep(tmp_path).model_dump_json())
    parent.receive()
    parent.connection.send({"command": "dance"})
    message = failure(parent)
    assert message["exit_code"] == 5
    assert "dance" in message["error"]


def test_a_request_that_is_none_is_a_failed_event() -> None:
    assert "not valid" in failure(Parent('{"steps": 3}'))["error"]


def test_a_child_that_starts_with_threads_refuses(tmp_path: Path) -> None:
    message = failure(Parent(lockstep(tmp_path).model_dump_json(), num_threads=3))
    assert "3 threads" in message["error"]


@pytest.mark.slow
def test_a_real_process_from_a_fork_server(tmp_path: Path) -> None:
    from lanewise.train.entry import child_main

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lanewise.train.run"])
    ours: Connection
    ours, theirs = context.Pipe()
    process = context.Process(
        target=child_main, args=(lockstep(tmp_path).model_dump_json(), theirs)
    )
    process.start()
    theirs.close()
    assert ours.poll(PATIENCE_SECONDS)
    assert ours.recv()["event"] == "ready"
    ours.send({"command": "step", "count": 2})
    assert ours.poll(PATIENCE_SECONDS)
    assert len(ours.recv()["loss"]) == 2
    ours.send(
        {"command": "finish", "warmup": {"rule": "given", "steps": 0, "steady": True, "reason": ""}}
    )
    assert ours.poll(PATIENCE_SECONDS)
    assert ours.recv()["event"] == "finished"
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == 0
    assert len(receipts(tmp_path)) == 1


def test_importing_the_entry_imports_no_torch() -> None:
    code = "import lanewise.train.entry, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
