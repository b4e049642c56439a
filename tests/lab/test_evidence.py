"""A block's contrast is made by the version of the method that its receipts name."""

import random

import pytest

from lanewise.lab import protocol
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.evidence import read_blocks
from lanewise.measure.stats import median_quad_contrast, quad_contrast
from lanewise.receipts.store import Store
from tests.lab.fake import BASE_SECONDS, World, options


def measured(tmp_path, monkeypatch, version):
    """Blocks of a noisy campaign whose receipts say this version, and its decision."""
    monkeypatch.setattr(protocol, "METHOD_VERSION", version)
    world = World(store=Store(tmp_path))
    rng = random.Random(0)
    world.script.seconds = lambda request, step, now: BASE_SECONDS * (1 + 0.05 * rng.random())
    (decision,) = world.lab().start(options(blocks=2)).decisions
    folder = CampaignFolder.find(world.store.root, decision.campaign_id)
    return read_blocks(world.store, list(folder.finished().values())), decision


@pytest.mark.parametrize(("version", "centre"), [("1", median_quad_contrast), ("2", quad_contrast)])
def test_a_contrast_follows_the_version_of_its_receipts(tmp_path, monkeypatch, version, centre):
    blocks, decision = measured(tmp_path, monkeypatch, version)
    for block, record in zip(blocks, decision.blocks, strict=True):
        control, treated = (block.steady_seconds(arm)[0] for arm in ("A", "B"))
        assert median_quad_contrast(control, treated) != quad_contrast(control, treated)
        assert block.contrast_log() == record.contrast_log == centre(control, treated)


def test_a_method_that_is_not_known_is_named_and_never_guessed(tmp_path, monkeypatch):
    blocks, decision = measured(tmp_path, monkeypatch, "3")
    for block in blocks:
        assert block.receipts["A"] == ()
        assert block.unreadable[0].startswith(
            "arm A: measured by method 3, and this lanewise knows 1, 2;"
        )
    assert not any(block.valid for block in decision.blocks)
