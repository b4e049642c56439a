"""The protocol over real processes, without torch: every way a child can end becomes one clear error."""

import multiprocessing
import os
import signal
import time

import psutil
import pytest

from lanewise.errors import ChildError
from lanewise.lab.children import Child, ChildRefused, ProcessEndpoint
from lanewise.receipts.schema import Warmup


def obedient(connection):
    connection.send({"event": "ready", "pid": os.getpid(), "setup_seconds": 0.25})
    while True:
        message = connection.recv()
        if message["command"] == "abort":
            return
        if message["command"] == "step":
            count = message["count"]
            connection.send(
                {
                    "event": "stepped",
                    "duration_seconds": [0.5] * count,
                    "loss": [1.0] * count,
                    "tags": [[]] * count,
                }
            )
        else:
            connection.send(
                {
                    "event": "finished",
                    "receipt_id": "sha256:0",
                    "receipt_path": "x",
                    "validity": "valid",
                    "reasons": [message["warmup"]["reason"]],
                }
            )
            return


def killed(connection):
    connection.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(connection):
    connection.recv()
    os._exit(7)


def refuses(connection):
    connection.send({"event": "failed", "error": "no C++ compiler was found", "exit_code": 2})


def silent(connection):
    time.sleep(60)


def babbles(connection):
    connection.send({"event": "stepped", "duration_seconds": [], "loss": [], "tags": []})
    connection.recv()


@pytest.fixture
def start():
    context = multiprocessing.get_context("spawn")
    started = []

    def launch(target):
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(theirs,))
        process.start()
        theirs.close()
        started.append(process.pid)
        return Child(ProcessEndpoint(process, ours), label="fused_moe block 3 arm B")

    yield launch
    for pid in started:
        assert not psutil.pid_exists(pid), "a child was left behind"


def test_an_obedient_child(start):
    child = start(obedient)
    assert child.wait_ready(30.0) == 0.25
    assert child.step(3, 30.0).duration_seconds == (0.5, 0.5, 0.5)
    assert child.resident_bytes() > 2**20
    child.ask_to_finish(warmup=Warmup(rule="given", steps=1, steady=True, reason="because"))
    assert child.wait_finished(30.0).reasons == ("because",)
    child.abort()


def test_an_abort_ends_it(start):
    child = start(obedient)
    child.wait_ready(30.0)
    child.abort()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (killed, "fused_moe block 3 arm B: the process was killed by SIGKILL, which is also how"),
        (leaves, "fused_moe block 3 arm B: the process ended with exit code 7"),
    ],
)
def test_a_child_that_dies_is_named_with_its_ending(start, target, said):
    child = start(target)
    with pytest.raises(ChildError, match=said):
        child.step(1, 30.0)


def test_a_child_that_refuses_keeps_its_own_words(start):
    child = start(refuses)
    with pytest.raises(ChildRefused) as caught:
        child.wait_ready(30.0)
    assert caught.value.reason == "no C++ compiler was found"
    assert caught.value.child_exit_code == 2


def test_a_silent_child_is_stopped(start):
    child = start(silent)
    with pytest.raises(ChildError, match="gave no answer for 0 s and was stopped"):
        child.wait_ready(0.01)


def test_nonsense_is_not_taken_for_an_answer(start):
    child = start(babbles)
    with pytest.raises(ChildError, match="expected 'ready', the process answered 'stepped'"):
        child.wait_ready(30.0)
    child.abort()
