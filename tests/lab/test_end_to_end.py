"""The real thing: fork server, training processes, receipts. Asserts evidence, never a timing."""

import time
from datetime import UTC, datetime

import pytest

from lanewise.lab import protocol
from lanewise.lab.children import ForkServerLauncher
from lanewise.lab.conditions import current_conditions, environment_changes
from lanewise.lab.session import Lab
from lanewise.lane.load import load_lane
from lanewise.lane.machine import detect_machine_class
from lanewise.measure.host import SystemHost
from lanewise.receipts.decision import Verdict
from lanewise.receipts.store import Store
from tests.lab.fake import options

SMALLER = ("batch.micro_batch_size=2", "batch.sequence_length=32")
BUSY = ("no steady", "disturbed: ")
"""What a block may be refused for where other programs run."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def result(store, tmp_path_factory):
    corpus = tmp_path_factory.mktemp("data") / "corpus.txt"
    corpus.write_text("the quick brown fox jumps over the lazy dog\n" * 2000, encoding="utf-8")
    lab = Lab(
        store=store,
        launcher=lambda num_threads: ForkServerLauncher(num_threads=num_threads),
        clock=time.monotonic,
        now=lambda: datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        new_token=lambda: "real",
        free_memory_bytes=lambda device: None,
        listen=lambda event: None,
        host=SystemHost(),
    )
    return lab.start(
        options(
            lane=load_lane("nam56r-tiny", SMALLER),
            machine_class=detect_machine_class("cpu"),
            features=("fused_mamba", "none"),
            budget_seconds=120.0,
            blocks=2,
            data_path=str(corpus),
        )
    )


@pytest.mark.slow
def test_a_campaign_of_real_processes_completes(result):
    assert result.campaign.status == "COMPLETE"
    assert all(any(text in lost for text in BUSY) for lost in result.campaign.discarded_blocks)
    mamba, noise = result.decisions
    assert mamba.verdict is not Verdict.NOT_MEASURED
    assert mamba.observed == ("chunked.torch",)
    assert mamba.observed_ok
    assert noise.feature == "none"


@pytest.mark.slow
def test_its_receipts_show_fresh_processes_that_were_asked_and_obeyed(result, store):
    receipts = list(store.iter_receipts())
    # An attempt that does not count keeps its receipts and is run again.
    assert len(receipts) == 8 + 2 * len(result.campaign.discarded_blocks)
    for receipt in receipts:
        assert receipt.environment.variables["OMP_WAIT_POLICY"] == "PASSIVE"
        assert receipt.experiment.campaign_id == result.campaign.campaign_id
        failed = {check.name for check in receipt.outcome.checks if not check.ok}
        assert failed <= {"steady_state"}
    arms = {
        r.experiment.arm: {b.op: b.observed for b in r.backends}["ssm_scan"]
        for r in receipts
        if r.experiment.ablation_id == "fused_mamba"
    }
    assert arms == {"A": ("recurrence.torch",), "B": ("chunked.torch",)}


@pytest.mark.slow
def test_a_calibration_made_now_would_hold_now(result, store):
    """What a lab process expects of its children is what they write into their receipts."""
    for receipt in store.iter_receipts():
        now = current_conditions(receipt.machine.class_name, 1)
        assert now.machine == receipt.machine
        assert environment_changes(receipt.environment, now.environment, "cpu") == []


@pytest.mark.slow
def test_its_receipts_say_where_the_steps_ran_and_what_else_did(result, store):
    usable = SystemHost().usable_cores()
    pinned = usable is not None and len(usable) > 1
    for receipt in store.iter_receipts():
        parameters = receipt.extensions["io.lanewise.protocol"]
        assert parameters["pinned"] is pinned
        if receipt.host is None:
            assert receipt.missing["host"]
            continue
        assert receipt.host.cores == ((usable[-1],) if pinned else usable)
        assert receipt.host.cpu_seconds > 0
        assert 0.0 <= receipt.host.foreign_load_ratio <= 1.0
        assert receipt.extensions["io.lanewise.huge_pages"]
    gates = {gate.name for d in result.decisions for block in d.blocks for gate in block.gates}
    assert "host_quiet" in gates


@pytest.mark.slow
def test_arms_that_promise_the_same_mathematics_keep_it(result, store):
    pairs = {}
    for receipt in store.iter_receipts():
        # The seed tells attempts at a block apart.
        place = (receipt.experiment.ablation_id, receipt.experiment.order_seed)
        pairs.setdefault(place, []).append(store.read_steps(receipt.receipt_id).loss)
    for (feature, _), (one, other) in pairs.items():
        for step in range(protocol.PAIRED_LOSS_STEPS["fp32"]):
            allowed = 0.0 if feature == "none" else protocol.loss_tolerance(step, one[step], "fp32")
            assert abs(one[step] - other[step]) <= allowed
    mamba, _noise = result.decisions
    assert mamba.verdict is not Verdict.INVALID or any(text in mamba.reason for text in BUSY)


@pytest.mark.slow
@pytest.mark.parametrize("design", ["toggle", "plackett-burman"])
def test_a_screen_of_real_processes_completes(tmp_path, design):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the quick brown fox jumps over the lazy dog\n" * 2000, encoding="utf-8")
    store = Store(tmp_path / "store")
    lab = Lab(
        store=store,
        launcher=lambda num_threads: ForkServerLauncher(num_threads=num_threads),
        clock=time.monotonic,
        now=lambda: datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        new_token=lambda: "real",
        free_memory_bytes=lambda device: None,
        listen=lambda event: None,
    )
    result = lab.screen(
        options(
            lane=load_lane("nam56r-tiny", SMALLER),
            machine_class=detect_machine_class("cpu"),
            features=("fused_mamba", "fused_moe"),
            budget_seconds=180.0,
            data_path=str(corpus),
        ),
        design,
    )
    assert result.campaign.status == "COMPLETE"
    assert all(any(text in lost for text in BUSY) for lost in result.campaign.discarded_blocks)
    for decision in result.decisions:
        assert decision.mode == "screen"
        assert decision.observed_ok
        # A busy machine may never get steady, which is noise; anything else would be a defect.
        assert decision.verdict is not Verdict.INVALID or "steady" in decision.reason
    for receipt in store.iter_receipts():
        failed = {check.name for check in receipt.outcome.checks if not check.ok}
        assert failed <= {"steady_state"}
