"""Plans of other versions: older ones are read as what they were, newer ones are left to a newer program."""

import json
import re
from pathlib import Path

import pytest

from lanewise.errors import CampaignError
from lanewise.lab.analyse import analyse_campaign
from lanewise.lab.campaign import CampaignFolder, stored_plans
from lanewise.lab.plan import FIELDS_SINCE_1_1, PLAN_SCHEMA_VERSION, CampaignPlan, FeaturePlan
from lanewise.receipts.decision import Boundary
from lanewise.receipts.seal import sealed
from lanewise.receipts.store import Store
from tests.lab.fake import options
from tests.lab.test_session import with_effect

EVIDENCE = Path(__file__).parents[2] / "receipts"
GOLDEN = Path(__file__).parent / "golden"
OF_FEATURES_SINCE_1_1 = ("boundary", "detectable_log")


def rewritten(world, change):
    """A finished campaign whose plan file was changed."""
    world.script.seconds = with_effect("fused_moe", 0.8, noise_sd=0.01)
    result = world.lab().start(options(blocks=6))
    folder = CampaignFolder.find(world.store.root, result.campaign.campaign_id)
    path = folder.path / "plan.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    document = sealed(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return folder, result


def as_1_0(document):
    document["schema_version"] = "1.0.0"
    for key in FIELDS_SINCE_1_1:
        del document[key]
    for feature in document["features"]:
        for key in OF_FEATURES_SINCE_1_1:
            del feature[key]


def test_a_plan_of_1_0_looked_once_after_all_its_blocks(world):
    folder, result = rewritten(world, as_1_0)
    plan = folder.plan()
    assert plan.schema_version == "1.0.0"
    assert plan.features[0].boundary is None
    assert len(result.decisions[0].blocks) < 6, "the plan of today stopped early"
    record, (decision,) = analyse_campaign(
        world.store, plan.campaign_id, now="2026-11-23T10:00:00Z"
    )
    assert decision.boundary == Boundary(looks=(6,), alpha=0.05, nominal_alpha=0.05)
    assert decision.status == record.status == "INCOMPLETE"
    assert decision.looks == ()


@pytest.mark.parametrize("version", ["1.2.0", "2.0.0"])
def test_a_newer_plan_is_refused_with_the_command_that_helps(world, version):
    folder, _ = rewritten(world, lambda document: document.update(schema_version=version))
    with pytest.raises(CampaignError, match=f"{version}.*up to {PLAN_SCHEMA_VERSION}.*pip install"):
        folder.plan()
    assert stored_plans(world.store.root) == []


@pytest.mark.parametrize("version", ["new", None, 1])
def test_a_plan_that_names_no_version_is_damage(world, version):
    folder, _ = rewritten(world, lambda document: document.update(schema_version=version))
    with pytest.raises(CampaignError, match="not a campaign plan"):
        folder.plan()


def test_every_altered_number_of_a_plan_is_refused(world):
    result = world.lab().start(options(blocks=2))
    folder = CampaignFolder.find(world.store.root, result.campaign.campaign_id)
    path = folder.path / "plan.json"
    content = path.read_bytes()
    numbers = list(re.finditer(rb"(?<=: )[0-9]+", content))
    assert len(numbers) > 20
    for number in numbers:
        path.write_bytes(content[: number.start()] + b"3" + content[number.start() :])
        with pytest.raises(
            CampaignError,
            match=r"not a campaign plan \((altered: its body_digest is|not JSON).*start a new campaign$",
        ):
            folder.plan()
    path.write_bytes(content)
    assert folder.plan().campaign_id == result.campaign.campaign_id


def test_a_later_attempt_at_a_block_comes_after_the_blocks_that_were_run_before_it(world):
    result = world.lab().start(options(blocks=3))
    folder = CampaignFolder.find(world.store.root, result.campaign.campaign_id)
    first = folder.finished()["fused_moe", 1]
    folder.journal.append(first.model_copy(update={"attempt": 2}))
    assert [block for _, block in folder.finished()] == [2, 3, 1]
    assert folder.finished()["fused_moe", 1].attempt == 2


@pytest.mark.parametrize(
    "plan", sorted(EVIDENCE.glob("cpu-2026-11*/campaigns/*/plan.json")), ids=lambda p: p.parent.name
)
def test_committed_campaigns_from_before_there_were_seals_are_read(plan):
    folder = CampaignFolder(plan.parent)
    store = Store(plan.parents[2])
    assert b"body_digest" not in plan.read_bytes() + folder.journal.path.read_bytes()
    assert folder.plan().campaign_id == plan.parent.name
    assert folder.finished()
    campaign = store.read_campaign(plan.parent.name)
    assert [store.read_decision(decision).verdict for decision in campaign.decisions]


def test_every_field_that_1_0_did_not_know_is_written_down_and_has_a_default():
    old = json.loads((GOLDEN / "plan-1.0.json").read_text(encoding="utf-8"))
    assert PLAN_SCHEMA_VERSION.startswith("1.1."), "a new version writes down its own fields"
    assert CampaignPlan.model_fields.keys() - old.keys() == FIELDS_SINCE_1_1
    assert FeaturePlan.model_fields.keys() - old["features"][0].keys() == set(OF_FEATURES_SINCE_1_1)
    plan = CampaignPlan.model_validate(old)
    for name in FIELDS_SINCE_1_1:
        field = CampaignPlan.model_fields[name]
        assert getattr(plan, name) == field.get_default(call_default_factory=True)


def test_a_plan_of_1_1_without_an_empty_field_is_read_as_it_was_written():
    written = (GOLDEN / "plan-1.1.json").read_bytes()
    plan = CampaignPlan.model_validate_json(written)
    assert plan.schema_version == PLAN_SCHEMA_VERSION
    assert json.loads(plan.model_dump_json()) == json.loads(written)
    assert json.loads(written).keys() == CampaignPlan.model_fields.keys()
