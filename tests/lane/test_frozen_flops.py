"""The frozen counts: what changes them must change the convention's version."""

import json

from tools.flops import END, FROZEN, PAGE, counted, page

REMEDY = "raise CONVENTION_VERSION, run `python -m tools.flops --freeze` and say why in docs/LOG.md"


def test_every_preset_counts_as_frozen() -> None:
    frozen = json.loads(FROZEN.read_text())
    now = json.loads(json.dumps(counted()))
    assert now["convention_version"] == frozen["convention_version"], REMEDY
    assert now["presets"].keys() == frozen["presets"].keys(), REMEDY
    for name, preset in now["presets"].items():
        assert preset == frozen["presets"][name], f"{name}: {REMEDY}"


def test_the_page_is_written_from_the_frozen_file() -> None:
    text = PAGE.read_text()
    assert END in text
    assert page(text, json.loads(FROZEN.read_text())) == text, "run `python -m tools.flops`"
