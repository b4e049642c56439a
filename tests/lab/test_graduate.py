"""Whole stores in, ledger entries out: confirmation, devices, demotion, lanes that agree, garbage."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from lanewise.errors import UsageError
from lanewise.lab.analyse import analyse_campaign
from lanewise.lab.graduate import Case, graduate
from lanewise.lab.graduate_evidence import Evidence, read_evidence
from lanewise.lab.graduate_rules import apply_rules
from lanewise.lane.digest import lane_digest, model_digest
from lanewise.lane.load import load_lane
from lanewise.receipts import store as store_module
from lanewise.receipts.decision import Verdict
from lanewise.receipts.document import parse_receipt
from lanewise.receipts.schema import RunReceipt
from lanewise.receipts.store import Store
from tests.lab.graduating import (
    DAYS,
    NOW,
    altered,
    at,
    campaign,
    found,
    measured,
    outcome,
    series,
)

SMALLER = ("batch.micro_batch_size=2",)


def only(evidence: list[Evidence]) -> Case:
    (case,) = graduate(evidence).cases
    return case


def names(evidence: list[Evidence]) -> tuple[str, ...]:
    return tuple(each.cited for each in evidence)


def test_two_days_graduate_a_feature_with_everything_a_reader_needs(tmp_path: Path) -> None:
    first = campaign(tmp_path, day=DAYS[0], ratio=0.7)
    second = campaign(tmp_path, day=DAYS[1], ratio=0.8)
    done = outcome(tmp_path)
    (entry,) = done.entries
    assert (entry.feature, entry.state, entry.date) == ("fused_moe", "on", DAYS[1])
    assert entry.scope.lanes == (lane_digest(load_lane("nam56r-tiny")),)
    assert entry.scope.machine_class == "cpu-x86_64-2c"
    assert entry.evidence == (
        f"decision:{first}-fused_moe",
        f"decision:{second}-fused_moe (confirmatory)",
    )
    assert entry.single_device
    assert entry.effect is not None
    # The effect is the confirmation's: 0.8, not the larger one that made somebody look.
    assert entry.effect.step_time_ratio == pytest.approx(0.8, abs=0.002)
    assert entry.effect.interval == pytest.approx((0.8, 0.8), abs=0.005)
    assert set(entry.backend_versions) == {"moe_experts=padded.torch", "moe_experts=sorted.torch"}
    assert done.withdrawn == ()


def test_one_campaign_is_held() -> None:
    case = only(series(0.8))
    assert (case.result, case.entries) == ("held", ())
    assert case.text == f"needs a confirmation on another UTC day than {DAYS[0]}"


def test_two_campaigns_of_one_day_are_held() -> None:
    fast = measured(0.8)
    assert only([at(fast, DAYS[0]), at(fast, DAYS[0], device="two")]).result == "held"


def test_where_two_devices_are_known_the_same_one_confirms_nothing() -> None:
    fast = measured(0.8)
    same = [at(fast, DAYS[0]), at(fast, DAYS[1])]
    other_feature = at(measured(0.8, feature="fused_mamba"), DAYS[2], device="two")
    case = graduate([*same, other_feature]).cases[1]
    assert (case.feature, case.result) == ("fused_moe", "held")
    assert "another device: the stores know 2 of cpu-x86_64-2c" in case.text
    (entry,) = only([*same, at(fast, DAYS[2], device="two")]).entries
    assert not entry.single_device
    assert entry.evidence[1].endswith("(confirmatory, other device)")


def test_a_failed_confirmation_starts_the_count_anew() -> None:
    assert only(series(0.8, 1.0, 0.8)).result == "held"
    case = only(series(0.8, 1.0, 0.8, 0.8))
    assert case.result == "graduated"
    assert case.entries[0].date == DAYS[3]


def test_slower_twice_switches_off_what_is_on_by_its_stance() -> None:
    (entry,) = only(series(1.3, 1.3)).entries
    assert entry.state == "off"
    assert entry.effect is not None
    assert entry.effect.step_time_ratio > 1


def test_slower_earns_nothing_for_what_is_off_already() -> None:
    case = only(series(1.3, 1.3, feature="regional_compile"))
    assert (case.result, case.entries) == ("refused", ())
    assert case.text == "slower, and off already by its stance"


def test_two_failed_retests_demote_and_say_who_and_when() -> None:
    still = only(series(0.8, 0.8, 1.0))
    assert still.result == "graduated"
    assert still.text.endswith(f"one re-test against it on {DAYS[2]}")
    evidence = series(0.8, 0.8, 1.0, 1.0)
    case = only(evidence)
    assert case.result == "demoted"
    (entry,) = case.entries
    assert entry.demoted is not None
    assert entry.demoted.date == DAYS[3]
    assert entry.demoted.evidence == names(evidence[2:])
    assert entry.demoted.by == "lanewise graduate"
    assert entry.silenced(None, {}) == f"demoted on {DAYS[3]}"


def test_failed_retests_of_one_day_are_one() -> None:
    again = [at(measured(1.0), DAYS[2], name=name) for name in "ab"]
    assert only([*series(0.8, 0.8), *again]).result == "graduated"


def test_a_pass_between_two_failed_retests_keeps_the_entry() -> None:
    assert only(series(0.8, 0.8, 1.0, 0.8, 1.0)).result == "graduated"


@pytest.mark.parametrize(("detects", "result"), [(0.3, "graduated"), (0.2, "demoted")])
def test_a_retest_too_small_to_see_the_effect_counts_for_nothing(
    detects: float, result: str
) -> None:
    open_ended = [
        altered(e, verdict=Verdict.INCONCLUSIVE, estimate={"mde_log": detects})
        for e in series(0.8, 0.8, 1.0, 1.0)[2:]
    ]
    assert -math.log(0.8) == pytest.approx(0.223, abs=0.001)  # between the two
    assert only([*series(0.8, 0.8), *open_ended]).result == result


def test_slower_twice_after_graduation_earns_the_opposite() -> None:
    case = only(series(0.8, 0.8, 1.3, 1.3))
    assert [(entry.state, entry.demoted is None) for entry in case.entries] == [
        ("on", False),
        ("off", True),
    ]


def test_after_a_demotion_old_evidence_earns_nothing_back() -> None:
    assert only(series(0.8, 0.8, 1.0, 1.0, 0.8)).result == "held"
    case = only(series(0.8, 0.8, 1.0, 1.0, 0.8, 0.8))
    assert [entry.date for entry in case.entries] == [DAYS[1], DAYS[5]]


def test_other_versions_of_a_backend_are_other_evidence() -> None:
    newer = {f"moe_experts={name}.torch": {"torch": "2.14.0"} for name in ("padded", "sorted")}
    first, second = series(0.8, 0.8)
    cases = graduate([first, altered(second, backend_versions=newer)]).cases
    assert [case.result for case in cases] == ["held", "held"]


def test_two_lanes_of_a_model_speak_for_the_model_and_one_does_not() -> None:
    one_lane = series(0.7, 0.7)
    assert [entry.scope.models for entry in graduate(one_lane).entries] == [()]
    *lanes, model = graduate([*one_lane, *series(0.9, 0.9, lane=SMALLER)]).entries
    assert len(lanes) == 2
    assert model.scope.models == (model_digest(load_lane("nam56r-tiny")),)
    assert model.scope.lanes == ()
    assert model.effect is not None
    assert model.effect.step_time_ratio == pytest.approx(0.9, abs=0.002)  # the weaker of the two
    assert len(model.evidence) == 4


def test_lanes_that_disagree_speak_for_themselves() -> None:
    entries = graduate([*series(0.7, 0.7), *series(1.3, 1.3, lane=SMALLER)]).entries
    assert {entry.state for entry in entries} == {"on", "off"}
    assert all(entry.scope.lanes for entry in entries)


def test_an_entry_of_evidence_that_is_elsewhere_stays_and_can_be_demoted() -> None:
    evidence = series(0.8, 0.8, 1.0, 1.0)
    entries = graduate(evidence[:2]).entries
    assert graduate([], entries=entries).entries == entries
    (entry,) = graduate(evidence[2:], entries=entries).entries
    assert entry.demoted is not None
    assert entry.demoted.date == DAYS[3]


@pytest.mark.parametrize("ratios", [(0.8, 0.8, 1.0, 1.0, 0.8, 0.8), (0.8, 0.8, 1.0), (1.0, 1.0)])
def test_graduating_again_changes_nothing(ratios: tuple[float, ...]) -> None:
    evidence = series(*ratios)
    once = graduate(evidence)
    again = graduate(evidence, entries=once.entries, taxes=once.taxes)
    assert (again.entries, again.withdrawn) == (once.entries, ())


def test_an_entry_whose_own_evidence_no_longer_earns_it_is_withdrawn() -> None:
    first, second = series(0.8, 0.8)
    entries = graduate([first, second]).entries
    done = graduate([first, altered(second, adjusted_p=0.2)], entries=entries)
    assert done.entries == ()
    assert done.withdrawn == entries


def test_a_tax_is_recorded_and_never_becomes_a_default() -> None:
    done = graduate(series(0.8, 0.8, feature="extra_aux_losses"))
    assert done.entries == ()
    (tax,) = done.taxes
    assert (tax.feature, tax.state, tax.verdict) == ("extra_aux_losses", "off", "WITHIN_BUDGET")
    assert tax.budget_ratio == 1.01
    assert tax.date == DAYS[1]


@pytest.fixture(scope="module")
def three_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    for day in DAYS[:3]:
        campaign(root, day=day)
    return root


def copied(root: Path, folder: Path) -> tuple[Path, Path]:
    """A copy of a store, and the folder of its newest campaign."""
    shutil.copytree(root, folder / "store")
    return folder / "store", sorted((folder / "store" / "campaigns").iterdir())[-1]


def test_a_copy_of_a_campaign_in_a_second_store_counts_once(
    three_days: Path, tmp_path: Path
) -> None:
    copy, _newest = copied(three_days, tmp_path)
    assert len(found(three_days, copy).evidence) == 3


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no campaign in .*nowhere; run `lanewise ablate LANE` first"
    ):
        read_evidence([str(tmp_path / "nowhere")], now=NOW)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plan.json", b""),
        ("plan.json", b"[1, 2"),
        ("plan.json", b"{}"),
        ("plan.json", b"\xff\xfe"),
        ("journal.jsonl", b'{"event": "block"}\n'),
        ("journal.jsonl", b"\x00\x01\n"),
        ("journal.jsonl", b"[]\n"),
    ],
)
def test_a_damaged_campaign_is_named_and_the_others_count(
    three_days: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    store, broken = copied(three_days, tmp_path)
    (broken / name).write_bytes(content)
    read = found(store)
    assert any(broken.name in problem for problem in read.problems)
    assert graduate(read.evidence).cases[0].result == "graduated"


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({"warmup_steps": -(10**9)}, "held"),  # all steps count, and say the same
        ({"warmup_steps": 10**9}, "refused"),
        ({"order": ["", "AAAA"]}, "held"),
        ({"receipts": {}}, "refused"),
        ({"receipts": {"A": [], "B": []}}, "refused"),
        ({"receipts": {"C": ["sha256:" + "0" * 64]}}, "refused"),
        ({"block": -1}, "refused"),
        ({"feature": "no_such_feature"}, "refused"),
        ({"lead_steps": 10**12}, "held"),
        ({"design": "sequential"}, "refused"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_journal_of_odd_numbers_crashes_nothing(
    three_days: Path, tmp_path: Path, changes: dict[str, object], result: str
) -> None:
    store, newest = copied(three_days, tmp_path)
    journal = newest / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines()
    first = {**json.loads(lines[0]), **changes}
    journal.write_text("\n".join([json.dumps(first), *lines[1:], ""]), encoding="utf-8")
    read = found(store)
    assert len(read.evidence) + len(read.problems) == 3
    damaged = [e for e in read.evidence if e.decision.campaign_id == newest.name]
    assert [case.result for case in graduate(damaged).cases] == [result] * len(damaged)


def test_rubbish_in_a_store_is_named(three_days: Path, tmp_path: Path) -> None:
    store, _newest = copied(three_days, tmp_path)
    (store / "campaigns" / "empty").mkdir()
    (store / "campaigns" / "a-file").write_text("x", encoding="utf-8")
    (store / "decisions" / "torn.json").write_text('{"kind": "decision"', encoding="utf-8")
    (store / "receipts" / "junk.json").write_text("[]", encoding="utf-8")
    read = found(store)
    assert len(read.evidence) == 3
    assert sorted(problem.split(":")[0].rsplit("/")[-1] for problem in read.problems) == [
        "empty",
        "torn.json",
    ]


def test_progress_is_told_per_campaign(three_days: Path) -> None:
    told: list[tuple[int, int]] = []
    found(three_days, tell=lambda done, total, name: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3)]


def test_campaigns_of_other_features_are_not_even_analysed(three_days: Path) -> None:
    assert found(three_days, features=["fused_mamba"], analyse=None).evidence == []


def test_two_campaigns_around_midnight_are_one_occasion() -> None:
    first, second = series(0.8, 0.8)
    late = dataclasses.replace(
        first,
        receipts={
            arm: tuple(
                r.model_copy(update={"created_at": f"{DAYS[0]}T23:50:00Z"}) for r in receipts
            )
            for arm, receipts in first.receipts.items()
        },
    )
    early = dataclasses.replace(
        second,
        plan=second.plan.model_copy(update={"created_at": f"{DAYS[1]}T00:01:00Z"}),
        receipts={
            arm: tuple(
                r.model_copy(update={"created_at": f"{DAYS[1]}T00:20:00Z"}) for r in receipts
            )
            for arm, receipts in second.receipts.items()
        },
    )
    case = only([late, early])
    assert case.result == "held"
    assert "at least 6 hours later; the two are 0.5 hours apart" in case.text
    assert only([late, second]).result == "graduated"


def test_a_copy_with_another_date_holds_the_same_series_and_confirms_nothing() -> None:
    first, second = series(0.8, 0.8)
    artifacts = iter([r.artifacts for r in first.all_receipts])
    copy = dataclasses.replace(
        second,
        receipts={
            arm: tuple(r.model_copy(update={"artifacts": next(artifacts)}) for r in receipts)
            for arm, receipts in sorted(second.receipts.items())
        },
    )
    case = only([first, copy])
    assert case.result == "held"
    assert f"{copy.cited} holds step series of {first.cited}" in case.text


def told_by_boot(evidence: Evidence) -> Evidence:
    """The same on a container that has no id but that of the boot."""
    return dataclasses.replace(
        evidence,
        receipts={
            arm: tuple(
                r.model_copy(
                    update={"machine": r.machine.model_copy(update={"instance_source": "boot"})}
                )
                for r in receipts
            )
            for arm, receipts in evidence.receipts.items()
        },
    )


def test_a_reboot_is_no_other_device() -> None:
    fast = measured(0.8)
    one, two = (told_by_boot(at(fast, DAYS[n], device=f"boot {n}")) for n in (0, 1))
    (entry,) = only([one, two]).entries
    assert entry.single_device
    assert entry.evidence[1].endswith("(confirmatory)")
    # Where the stores know two, one that nobody can tell is not shown to be the other.
    known = {"cpu-x86_64-2c": {"a", "b"}}
    assert graduate([one, two], devices=known).cases[0].result == "held"


def test_devices_of_other_features_count_when_one_feature_is_asked_about(tmp_path: Path) -> None:
    for day in DAYS[:2]:
        campaign(tmp_path, day=day)
    campaign(tmp_path, day=DAYS[2], feature="fused_mamba", device="two")
    read = found(tmp_path, features=["fused_moe"])
    assert graduate(read.evidence, devices=read.devices).cases[0].result == "held"


def test_an_entry_whose_decisions_are_in_no_store_is_named() -> None:
    entries = graduate(series(0.8, 0.8)).entries
    assert graduate([], entries=entries).unseen == entries
    assert graduate(series(0.8, 0.8), entries=entries).unseen == ()


def test_a_renamed_copy_of_a_campaign_is_none(three_days: Path, tmp_path: Path) -> None:
    store, newest = copied(three_days, tmp_path)
    shutil.copytree(newest, newest.with_name("20261201-000000-nam56r-tiny-beef"))
    read = found(store)
    assert len(read.evidence) == 3
    assert any("a renamed copy is no second campaign" in problem for problem in read.problems)


def test_receipts_of_another_campaign_do_not_count(three_days: Path, tmp_path: Path) -> None:
    """The best blocks of several campaigns, put together by hand."""
    store, newest = copied(three_days, tmp_path)
    oldest = sorted((store / "campaigns").iterdir())[0]
    shutil.copy(oldest / "journal.jsonl", newest / "journal.jsonl")
    (mixed,) = [e for e in found(store).evidence if e.decision.campaign_id == newest.name]
    r5 = apply_rules(mixed)[-1]
    assert r5.ok is False
    assert f"a receipt is of campaign {oldest.name}, not of this one" in r5.text


@pytest.mark.parametrize(
    ("feature", "changes"), [("planted", {"planted_ratio": 0.05}), ("observer", {}), ("none", {})]
)
def test_campaigns_about_the_instrument_are_no_evidence_and_are_not_read(
    tmp_path: Path, feature: str, changes: dict[str, float]
) -> None:
    campaign(tmp_path, day=DAYS[0], feature=feature, **changes)
    campaign(tmp_path, day=DAYS[1])

    analysed = []

    def analyse(store: Store, campaign_id: str, **arguments: Any) -> Any:
        analysed.append(campaign_id)
        return analyse_campaign(store, campaign_id, **arguments)

    seen = found(tmp_path, analyse=analyse)
    assert [e.decision.feature for e in seen.evidence] == ["fused_moe"]
    assert len(analysed) == 1
    assert [case.feature for case in graduate(seen.evidence).cases] == ["fused_moe"]


def test_a_campaign_on_both_bases_is_found_by_the_name_of_its_feature(tmp_path: Path) -> None:
    campaign(tmp_path, day=DAYS[0], design="both")
    seen = found(tmp_path, features=["fused_moe"])
    assert [e.decision.design for e in seen.evidence] == ["add-one", "leave-one-out"]


def test_every_receipt_is_read_and_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign(tmp_path, day=DAYS[0], blocks=2)
    parsed = []

    def parse(content: bytes, where: str) -> RunReceipt:
        parsed.append(where)
        return parse_receipt(content, where)

    monkeypatch.setattr(store_module, "parse_receipt", parse)
    (evidence,) = found(tmp_path).evidence
    assert len(evidence.all_receipts) == 4
    assert len(parsed) == len(set(parsed)) == 4


def test_an_eager_campaign_of_the_lane_lets_a_compiled_one_graduate(tmp_path: Path) -> None:
    hidden = {"profile.ops": {}, "compile.enabled": True, "compile.cache_state": "warm"}
    compiled = ("features.regional_compile=on",)
    for day in DAYS[:2]:
        campaign(tmp_path, day=day, lane=compiled, body=hidden)
    (case,) = graduate(found(tmp_path).evidence).cases
    assert (case.result, case.text) == ("refused", "R1 not kept")
    campaign(tmp_path, day=DAYS[2])
    (case,) = graduate(found(tmp_path).evidence).cases
    assert [attempt.passes for attempt in case.attempts] == [True] * 3
