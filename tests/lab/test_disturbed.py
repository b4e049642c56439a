"""Campaigns on a machine that others use: blocks run again, pinned processes, caches that come and go."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lanewise.errors import UsageError
from lanewise.lab.caches import FOLDER
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.events import BlockDiscarded
from lanewise.lab.watch import BlockWatch
from lanewise.measure.host import SELF, HostReading, ProcessReading
from lanewise.receipts.decision import Verdict
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, MACHINE, World, options, place


class Machine:
    """Two processors on the campaign's fake clock; `load` says which share of the used ones others take."""

    def __init__(self, clock, load=lambda: 0.0, usable=(0, 1)):
        self.clock, self.load, self.now = clock, load, usable
        self.last, self.busy = clock(), 0.0

    def usable_cores(self):
        return self.now

    def siblings(self, core):
        return frozenset({core})

    def restrict(self, cores):
        self.now = tuple(cores)

    def read(self, cores, process_ids):
        at = self.clock()
        self.busy += (at - self.last) * self.load() * len(cores)
        self.last = at
        idle = ProcessReading(cpu_seconds=0.0, involuntary_switches=0, major_faults=0)
        return HostReading(
            at_seconds=at,
            cores=tuple(cores),
            total_seconds=at * len(cores),
            busy_seconds=self.busy,
            steal_seconds=0.0,
            frequency_hertz=2e9,
            processes=dict.fromkeys(process_ids, idle),
        )


@pytest.fixture(name="world")
def world_fixture(tmp_path):
    world = World(store=Store(tmp_path / "store"))
    world.host = Machine(world.clock)
    return world


def running(world):
    """`feature/block/arm` of the newest visit."""
    return place(world.endpoints[-1].request)


def test_children_share_a_core_and_the_lab_gets_its_own_back(world):
    world.lab().start(options(blocks=2))
    assert {endpoint.request.cores for endpoint in world.endpoints} == {(1,)}
    assert world.host.now == (0, 1)
    measured = [e.request for e in world.endpoints if e.request.experiment is not None]
    assert {request.protocol["pinned"] for request in measured} == {True}
    windows = [receipt.host for receipt in world.store.iter_receipts()]
    assert {(window.cores, window.pinned) for window in windows} == {((1,), True)}


@pytest.mark.parametrize(("cores", "counted"), [((1,), (7, 8)), (None, (7, 8, SELF))])
def test_the_labs_own_time_is_subtracted_only_where_it_may_run(world, cores, counted):
    """Kept off the arms' core, it used none of its time: subtracting it would hide as much foreign load."""
    asked = []
    world.host.read = lambda cores, process_ids: asked.append(tuple(process_ids)) or "not read"
    BlockWatch(world.host, cores, [7, 8]).close()
    assert asked == [counted, counted]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_children_are_built_on_the_labs_cores():
    """A pinned child moves to its core after it was built; what building leaves behind must not have started there."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    program = """
import multiprocessing, os
from lanewise.lab.placement import aside, place
from lanewise.measure.host import SystemHost

if __name__ == "__main__":
    host = SystemHost()
    placement = place(host, num_threads=1, device_type="cpu", wanted=True)
    with aside(host, placement), multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.apply(os.sched_getaffinity, (0,)) == set(placement.lab_cores)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_no_pin_is_kept_by_a_resumed_campaign(world):
    world.script.interrupt = lambda request, step: place(request) == "fused_moe/2/A" and step == 6
    result = world.lab().start(options(blocks=2, pin=False))
    assert "processes are not pinned: --no-pin was given" in result.campaign.notes
    world.script.interrupt = lambda request, step: False
    world.lab().resume(options().lane, MACHINE, None)
    assert {endpoint.request.cores for endpoint in world.endpoints} == {None}


def test_a_disturbed_block_is_run_again_and_both_attempts_stay_on_record(world):
    attempts = []

    def load():
        return 0.6 if running(world).startswith("fused_moe/2/") and not attempts else 0.0

    world.host.load = load
    listen = world.events.append

    def note(event):
        if isinstance(event, BlockDiscarded):
            attempts.append(event)
        listen(event)

    lab = world.lab()
    object.__setattr__(lab, "listen", note)
    result = lab.start(options(blocks=3))
    (event,) = attempts
    assert event.again
    assert event.reason == "disturbed: other programs took 60% of the processors' time, allowed 25%"
    (decision,) = result.decisions
    assert [block.valid for block in decision.blocks] == [True] * 3
    assert result.campaign.discarded_blocks == (f"fused_moe block 2: {event.reason}",)
    (lost,) = CampaignFolder.find(world.store.root, result.campaign.campaign_id).lost()
    assert lost.failure_family == lost.failure.family == "disturbed"
    assert lost.failure.foreign_load_ratio == pytest.approx(0.6)
    assert {arm: len(ids) for arm, ids in lost.receipts.items()} == {"A": 1, "B": 1}
    for ids in lost.receipts.values():
        assert world.store.read_receipt(ids[0]).host.foreign_load_ratio == pytest.approx(0.6)


def test_a_machine_that_never_gets_quiet_gives_no_verdict_but_all_its_blocks(world):
    world.host.load = lambda: 0.6
    world.script.seconds = lambda request, step, now: BASE_SECONDS
    (decision,) = world.lab().start(options(blocks=3)).decisions
    assert decision.status == "COMPLETE"
    assert [block.valid for block in decision.blocks] == [False] * 3
    assert decision.verdict is Verdict.INVALID
    assert "fewer than 2 blocks count: block 1: disturbed" in decision.reason


def test_a_decision_lists_every_gate_of_every_block(world):
    (decision,) = world.lab().start(options(blocks=2)).decisions
    for block in decision.blocks:
        named = {gate.name: gate for gate in block.gates}
        assert set(named) >= {
            "comparable",
            "backend_proof",
            "finite_losses",
            "paired_losses",
            "goodput_closure",
            "event_wall_closure",
            "compile_cache",
            "memory_pressure",
            "clock_events",
            "host_quiet",
            "steady_state",
        }
        assert all(gate.ok and "(rule: " in gate.detail for gate in block.gates)


def test_a_decision_says_that_its_device_waits_for_the_host_and_keeps_its_verdict(world):
    (quiet,) = world.lab().start(options(blocks=2)).decisions
    assert quiet.host_bound is None
    world.script.body = lambda request: {"profile.device_busy_seconds": BASE_SECONDS / 4}
    (found,) = world.lab().start(options(blocks=2)).decisions
    assert "host-bound: the device works" in found.host_bound
    assert "of arm A's step of" in found.host_bound
    assert found.verdict is quiet.verdict


def compiled_options(**changes):
    return options(features=("regional_compile",), budget_seconds=600.0, **changes)


def test_both_arms_have_private_caches_which_a_finished_campaign_removes(world):
    world.script.body = lambda request: {"compile.cache_state": "warm"}
    result = world.lab().start(compiled_options(blocks=2))
    folders = {endpoint.request.compile_cache_dir for endpoint in world.endpoints}
    assert None not in folders
    assert len(folders) == 2
    assert result.campaign.status == "COMPLETE"
    assert not any(Path(world.store.root, FOLDER).iterdir())
    assert result.decisions[0].verdict is not Verdict.INVALID


def test_a_resumed_campaign_fills_its_caches_again(world):
    world.script.body = lambda request: {"compile.cache_state": "warm"}
    last = "regional_compile/2/A"
    world.script.interrupt = lambda request, step: place(request) == last and step == 6
    result = world.lab().start(compiled_options(blocks=2))
    (folder,) = Path(world.store.root, FOLDER).iterdir()
    assert folder.name == result.campaign.campaign_id
    for file in folder.rglob("*.ready"):
        file.unlink()  # another machine, or a cleaned disk
    world.script.interrupt = lambda request, step: False
    world.endpoints.clear()
    world.lab().resume(options().lane, MACHINE, None)
    visits = [(place(e.request), len(e.durations)) for e in world.endpoints]
    filling = [visit for visit, steps in visits if steps == 1]
    assert filling == ["regional_compile/2/B"] * 2
    assert visits[:2] == [("regional_compile/2/B", 1)] * 2, "before the block itself"


def test_cold_runs_find_nothing_and_their_compile_times_are_told(world):
    seconds = {1: 10.0, 2: 14.0, 3: 12.0}
    world.script.body = lambda request: (
        {
            "compile.cache_state": "cold",
            "compile.compile_duration_seconds": seconds[request.experiment.block],
        }
        if request.experiment.arm == "B"
        else {}
    )
    (decision,) = world.lab().start(compiled_options(blocks=3, cache="cold")).decisions
    compiled = [
        e.request for e in world.endpoints if any(e.request.resolved.runtime_switches.values())
    ]
    assert len({request.compile_cache_dir for request in compiled}) == len(compiled)
    (runs,) = decision.compile_runs
    assert (runs.arm, runs.cache_state, runs.num_runs) == ("B", "cold", 3)
    assert (runs.low_seconds, runs.median_seconds, runs.high_seconds) == (10.0, 12.0, 14.0)
    with pytest.raises(UsageError, match="--cache cold measures how compile time spreads over 3"):
        world.lab().start(compiled_options(blocks=2, cache="cold"))


def test_a_mixed_cache_is_invalid(world):
    world.script.body = lambda request: {
        "compile.cache_state": "mixed" if request.experiment.arm == "B" else "unused"
    }
    (decision,) = world.lab().start(compiled_options(blocks=2)).decisions
    assert decision.verdict is Verdict.INVALID
    assert "the compile cache was mixed" in decision.reason
