"""Both arms in one process: turns, receipts, and what must not be shared."""

import multiprocessing
import threading
from pathlib import Path
from typing import Any

from lanewise.receipts.store import Store
from lanewise.train.entry import run_both, serve
from lanewise.train.request import PairRequest, sharing_fault
from tests.models.micro import resolved_micro
from tests.train.runs import experiment, micro_request

PATIENCE_SECONDS = 60
COUNTED = ("moe_experts", "add_norm")


def pair(folder: Path) -> PairRequest:
    def arm(name: str, moe: str) -> Any:
        place = experiment().model_copy(update={"arm": name, "design": "toggle"})
        return micro_request(folder, features={"fused_moe": moe}, steps=None, experiment=place)

    return PairRequest(control=arm("A", "off"), treated=arm("B", "on"))


class Parent:
    """The lab's end of a pipe whose child runs in a thread of this process."""

    def __init__(self, request: PairRequest) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.thread = threading.Thread(
            target=serve,
            args=(request.model_dump_json(), theirs),
            kwargs={"num_threads": 1, "start_seconds": 0.0, "conversation": run_both},
        )
        self.thread.start()

    def ask(self, **message: Any) -> dict[str, Any]:
        self.connection.send(message)
        return self.receive()

    def receive(self) -> dict[str, Any]:
        assert self.connection.poll(PATIENCE_SECONDS), "the child gave no answer"
        message = self.connection.recv()
        assert isinstance(message, dict)
        return message

    def wait_end(self) -> None:
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()


def finished_pair(folder: Path, *orders: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder.mkdir(exist_ok=True)
    parent = Parent(pair(folder))
    assert parent.receive()["event"] == "ready"
    answers = [parent.ask(command="turns", order=order) for order in orders]
    done = parent.ask(
        command="finish", warmup={"rule": "given", "steps": 1, "steady": True, "reason": "of both"}
    )
    parent.wait_end()
    store = Store(str(folder / "store"))
    assert done["event"] == "finished", done
    found = {
        arm: (store.read_receipt(done["receipts"][arm]), store.read_steps(done["receipts"][arm]))
        for arm in "AB"
    }
    return found, answers


def test_turns_are_taken_in_the_order_asked_and_both_arms_write_a_receipt(tmp_path: Path) -> None:
    found, answers = finished_pair(tmp_path, "AB", "ABBA")
    assert [len(answer["duration_seconds"]) for answer in answers] == [2, 4]
    for arm, places in {"A": (0, 3), "B": (1, 2)}.items():
        receipt, steps = found[arm]
        assert (receipt.experiment.arm, receipt.experiment.design) == (arm, "toggle")
        assert receipt.outcome.validity == "valid", receipt.outcome.checks
        assert receipt.timing.warmup.steps == 1
        told = [answers[1]["duration_seconds"][place] for place in places]
        assert list(steps.duration_seconds[1:]) == told
        assert list(steps.loss[1:]) == [answers[1]["loss"][place] for place in places]


def test_launches_are_counted_for_each_arm_by_itself(tmp_path: Path) -> None:
    found, _ = finished_pair(tmp_path, "AB", "BBB")
    backends = {
        arm: {record.op: record for record in receipt.backends}
        for arm, (receipt, _steps) in found.items()
    }
    assert backends["A"]["moe_experts"].observed == ("padded.torch",)
    assert backends["B"]["moe_experts"].observed == ("sorted.torch",)
    for op in COUNTED:
        assert backends["B"][op].launches == 4 * backends["A"][op].launches > 0


def test_the_arms_train_apart_and_alike(tmp_path: Path) -> None:
    """Whatever the turns of the other, an arm's losses are those of a run of its own."""
    one, _ = finished_pair(tmp_path / "one", "AAA", "B")
    other, _ = finished_pair(tmp_path / "other", "BAB", "BAA")
    assert one["A"][1].loss == other["A"][1].loss
    assert other["B"][1].loss[:1] == one["B"][1].loss


def test_the_others_turns_are_waiting_and_its_memory_is_not_ours(tmp_path: Path) -> None:
    found, _ = finished_pair(tmp_path, "ABBA")
    for receipt, steps in found.values():
        assert receipt.memory.peak_device_used_bytes is None
        assert "shared the process" in receipt.missing["memory.peak_device_used_bytes"]
        others = next(s.duration_seconds for _, s in found.values() if s is not steps)
        assert receipt.goodput.badput_seconds["turn_wait"] >= sum(others)


def test_two_compiled_arms_are_refused(tmp_path: Path) -> None:
    request = pair(tmp_path)
    eager = resolved_micro()
    compiled = eager.model_copy(update={"runtime_switches": {"regional_compile": True}})
    assert sharing_fault(eager, compiled) is None
    assert "share the compiler's caches" in (sharing_fault(compiled, compiled) or "")
    arms = {
        name: getattr(request, name).model_copy(update={"resolved": compiled})
        for name in ("control", "treated")
    }
    parent = Parent(PairRequest(**arms))
    answer = parent.receive()
    parent.wait_end()
    assert (answer["event"], answer["exit_code"]) == ("failed", 2)
    assert "`lanewise ablate`" in answer["error"]


def test_an_order_of_other_letters_is_refused(tmp_path: Path) -> None:
    parent = Parent(pair(tmp_path))
    parent.receive()
    answer = parent.ask(command="turns", order="ABC")
    parent.wait_end()
    assert answer["event"] == "failed"
    assert "'ABC'" in answer["error"]
