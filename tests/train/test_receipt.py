"""Checks and feature states of a receipt, from facts made by hand."""

import dataclasses
from pathlib import Path

import pytest

from lanewise.ops.observe import Observation
from lanewise.ops.spec import Choice, Rejection
from lanewise.receipts.ceilings import ceiling_name
from lanewise.receipts.machine import collect_machine
from lanewise.receipts.schema import BADPUT_CATEGORIES, Check, Goodput, Warmup
from lanewise.receipts.store import Store, json_bytes
from lanewise.receipts.utilization import CitedCeiling
from lanewise.receipts.validate import receipt_faults
from lanewise.train import receipt as receipt_module
from lanewise.train.receipt import RunFacts
from lanewise.train.routing_receipt import expert_ranks
from lanewise.train.run import Run
from tests.receipts.factory import make_ceilings
from tests.train.runs import experiment, micro_request


@pytest.fixture(name="facts")
def facts_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFacts:
    """The facts of a real three-step run in a campaign."""
    caught: list[RunFacts] = []
    assemble = receipt_module.assemble
    monkeypatch.setattr(
        "lanewise.train.run.assemble", lambda facts: (caught.append(facts), assemble(facts))[1]
    )
    run = Run(micro_request(tmp_path, steps=None, experiment=experiment()))
    for _ in range(3):
        run.step()
    run.finish(warmup=Warmup(rule="given", steps=1, steady=True, reason="given"))
    return caught[0]


def check(facts: RunFacts, name: str) -> Check:
    outcome = receipt_module.assemble(facts)["outcome"]
    (found,) = (c for c in outcome.checks if c.name == name)
    assert outcome.validity == ("valid" if all(c.ok for c in outcome.checks) else "invalid")
    assert isinstance(found, Check)
    return found


def with_moe(facts: RunFacts, choice: Choice, observed: tuple[str, ...]) -> RunFacts:
    seen = Observation(op="moe_experts", backends=observed, launches=3, proof="counter")
    return dataclasses.replace(
        facts,
        choices={**facts.choices, "moe_experts": choice},
        observations={**facts.observations, "moe_experts": seen},
    )


def moe_choice(chosen: str, *requested: str, rejected: tuple[Rejection, ...] = ()) -> Choice:
    return Choice(
        op="moe_experts",
        requested=requested,
        chosen=chosen,
        rejected=rejected,
        fallback=bool(rejected),
    )


def test_an_untouched_run_is_valid(facts: RunFacts) -> None:
    assert receipt_module.assemble(facts)["outcome"].validity == "valid"


def test_observed_other_than_chosen_is_invalid(facts: RunFacts) -> None:
    odd = with_moe(facts, moe_choice("sorted.torch", "sorted.torch"), ("padded.torch",))
    found = check(odd, "observed_backends")
    assert not found.ok
    assert found.detail == "asked for moe_experts=sorted.torch, observed padded.torch"


def test_two_observed_backends_are_invalid(facts: RunFacts) -> None:
    both = ("padded.torch", "sorted.torch")
    assert not check(
        with_moe(facts, moe_choice("sorted.torch", "sorted.torch"), both), "observed_backends"
    ).ok


def test_an_op_that_never_ran_is_invalid(facts: RunFacts) -> None:
    silent = with_moe(facts, moe_choice("sorted.torch", "sorted.torch"), ())
    assert "observed nothing" in check(silent, "observed_backends").detail


FALLBACK = moe_choice(
    "padded.torch",
    "sorted.cuda",
    "padded.torch",
    rejected=(Rejection(backend="sorted.cuda", reason="it runs on cuda, not on cpu"),),
)


def test_a_fallback_is_invalid_in_a_campaign_and_says_why(facts: RunFacts) -> None:
    found = check(with_moe(facts, FALLBACK, ("padded.torch",)), "observed_backends")
    assert not found.ok
    assert "it runs on cuda" in found.detail


def test_a_fallback_is_recorded_and_valid_in_plain_training(facts: RunFacts) -> None:
    plain = dataclasses.replace(
        with_moe(facts, FALLBACK, ("padded.torch",)),
        request=facts.request.model_copy(update={"experiment": None}),
    )
    assert check(plain, "observed_backends").ok
    (record,) = (b for b in receipt_module.assemble(plain)["backends"] if b.op == "moe_experts")
    assert record.fallback_reason == "sorted.cuda: it runs on cuda, not on cpu"


@pytest.mark.parametrize(
    ("chosen", "effective"),
    [("sorted.torch", "on"), ("padded.torch", "off"), ("reference", "other")],
)
def test_effective_state_follows_the_backend_that_was_chosen(
    facts: RunFacts, chosen: str, effective: str
) -> None:
    pinned = with_moe(facts, moe_choice(chosen, chosen), (chosen,))
    (feature,) = (f for f in receipt_module.assemble(pinned)["features"] if f.key == "fused_moe")
    assert (feature.requested, feature.effective) == ("on", effective)


@pytest.mark.parametrize(
    ("ran", "effective"),
    [
        ({"mimo_scan": "chunked.torch"}, "on"),
        ({"mimo_scan": "recurrence.torch"}, "off"),
        ({}, "other"),
    ],
)
def test_effective_state_looks_at_the_ops_that_ran(
    facts: RunFacts, ran: dict[str, str], effective: str
) -> None:
    """A MIMO lane runs one of the two ops that fused_mamba sets; a lane that runs neither shows no state of it."""
    choices = {op: choice for op, choice in facts.choices.items() if op != "ssm_scan"}
    observations = dict(facts.observations)
    for op, chosen in ran.items():
        choices[op] = Choice(op=op, requested=(chosen,), chosen=chosen, rejected=(), fallback=False)
        observations[op] = Observation(op=op, backends=(chosen,), launches=3, proof="counter")
    found = dataclasses.replace(facts, choices=choices, observations=observations)
    (feature,) = (f for f in receipt_module.assemble(found)["features"] if f.key == "fused_mamba")
    assert feature.effective == effective


def goodput(*, other: float, wall: float = 1.0) -> Goodput:
    return Goodput(
        wall_duration_seconds=wall,
        step_seconds=0.5,
        goodput_ratio=0.5,
        badput_seconds={**dict.fromkeys(BADPUT_CATEGORIES, 0.0), "other": other},
    )


@pytest.mark.parametrize(
    ("partition", "ok"),
    [
        (goodput(other=0.5), True),
        (goodput(other=0.4), False),  # does not add up
        (goodput(other=-0.1, wall=0.4), False),  # spans overlap
    ],
)
def test_goodput_must_close_without_a_negative_rest(
    facts: RunFacts, partition: Goodput, ok: bool
) -> None:
    assert check(dataclasses.replace(facts, goodput=partition), "goodput_closes").ok is ok


def test_a_run_cites_the_ceiling_of_its_store(tmp_path: Path) -> None:
    request = micro_request(tmp_path, steps=2)
    machine = collect_machine(request.resolved.machine_class)
    record = make_ceilings({"machine": machine.model_dump(mode="json")})
    Store(request.store_root).write_ceilings(record)
    run = Run(request)
    run.step()
    flops = run.finish().receipt.flops
    assert flops.measured_matmul_flops_per_second == record.matmul_flops_per_second
    assert flops.ceiling is not None
    assert flops.ceiling.measured_at == record.measured_at
    assert flops.ceiling.machine_instance_digest == machine.instance_digest


@pytest.mark.parametrize(
    "content",
    [
        b"{\n",
        b"[]",
        json_bytes(make_ceilings()),
        json_bytes(make_ceilings({"measured_at": "today"})),
    ],
)
def test_a_damaged_ceiling_costs_no_receipt(tmp_path: Path, content: bytes) -> None:
    request = micro_request(tmp_path, steps=2)
    machine = collect_machine(request.resolved.machine_class)
    place = (
        Path(request.store_root) / "ceilings" / ceiling_name(machine, "fp32", request.num_threads)
    )
    place.parent.mkdir(parents=True)
    if b"today" in content:  # sound but for that
        old, own = make_ceilings().machine.instance_digest, machine.instance_digest
        content = content.replace(old.encode(), own.encode())
    place.write_bytes(content)
    run = Run(request)
    run.step()
    receipt = run.finish().receipt
    assert receipt.flops.ceiling is None
    assert (
        "cannot be read; `lanewise doctor` measures them anew" in receipt.missing["flops.ceiling"]
    )
    assert receipt_faults(receipt) == []


def test_one_rank_holds_every_expert_and_sends_nothing(facts: RunFacts) -> None:
    routing = receipt_module.assemble(facts)["routing"]
    assert set(routing.expert_ranks) == {0}
    assert routing.tokens_between_ranks == ((0,),)
    assert expert_ranks(8, 4) == (0, 0, 1, 1, 2, 2, 3, 3)


def ceiling(flops_per_second: float) -> CitedCeiling:
    return CitedCeiling(
        matmul_flops_per_second=flops_per_second,
        dtype="fp32",
        num_threads=1,
        measured_at="2026-11-23T09:00:00Z",
        age_seconds=60.0,
        machine_instance_digest="sha256:" + "0" * 64,
    )


def test_utilisation_needs_a_ceiling(facts: RunFacts) -> None:
    body = receipt_module.assemble(facts)
    assert body["flops"].model_flops_utilization_ratio is None
    assert "ceiling" in body["missing"]["flops.model_flops_utilization_ratio"]
    assert "`lanewise doctor` measures it" in body["missing"]["flops.ceiling"]
    cited = dataclasses.replace(facts, ceiling=ceiling(1e15))
    measured = receipt_module.assemble(cited)
    rate = measured["throughput"].tokens_per_second
    flops = measured["flops"]
    expected = rate * flops.training_flops_per_token / 1e15
    assert flops.model_flops_utilization_ratio == pytest.approx(expected)
    assert flops.measured_matmul_flops_per_second == 1e15
    assert flops.ceiling == ceiling(1e15)
    assert flops.flags == ()


def test_more_than_everything_is_flagged_and_not_clamped(facts: RunFacts) -> None:
    body = receipt_module.assemble(dataclasses.replace(facts, ceiling=ceiling(1.0)))
    flops = body["flops"]
    assert flops.model_flops_utilization_ratio > 1e6
    assert [flag.split()[0] for flag in flops.flags] == ["lane", "hardware", "six_n_active"]
    assert body["outcome"].validity == "valid"  # step times are evidence whatever the count says
