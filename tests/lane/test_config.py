import dataclasses
from pathlib import Path

import pytest

from lanewise.errors import LaneError, NotBuiltError
from lanewise.lane.config import Config, apply_config, load_config
from lanewise.lane.features import BY_KEY, Role
from lanewise.lane.load import load_lane
from lanewise.lane.resolve import resolve

ARTICLE_YAML = """\
speed_defaults:
  fused_mamba: true
  fused_residual: true
  fused_mla_ingress: true
  fused_moe: true
  backend_dispatch: auto
experimental_taxes:
  stp: false
  extra_aux_losses: false
observability:
  goodput: true
  temporal_perf: true
  measurements: true
"""
ARTICLE_TOML = """\
[speed_defaults]
fused_mamba = true
fused_residual = true
fused_mla_ingress = true
fused_moe = true
backend_dispatch = "auto"

[experimental_taxes]
stp = false
extra_aux_losses = false

[observability]
goodput = true
temporal_perf = true
measurements = true
"""
LEDGER_OF_EXPERIENCE_MD = """\
[speed_defaults.fused_moe]
state = "on"
scope = { lanes = ["sha256:9c2f", "sha256:71aa"], machine_class = "h100-sxm" }
evidence = ["decision:2026-11-23", "decision:2026-11-25 (confirmatory, other device)"]
effect = { step_time_ratio = 0.874, interval = [0.869, 0.880] }

[experimental_taxes.stp]
state = "off"
budget_ratio = 1.01
last = "decision:2026-11-23"

[observability]
goodput = true
temporal_perf = true
measurements = true
"""


def load(tmp_path: Path, text: str, suffix: str = ".toml") -> Config:
    path = tmp_path / f"config{suffix}"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def problems_of(tmp_path: Path, text: str, suffix: str = ".toml") -> list[str]:
    with pytest.raises(LaneError) as caught:
        load(tmp_path, text, suffix)
    return [line.replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()]


def states(config: Config | None, *overrides: str) -> dict[str, str]:
    found = resolve(
        load_lane("nam56r-tiny", overrides),
        machine_class="cpu-x86_64-2c",
        device_type="cpu",
        mode="train",
        config=config,
    )
    return {decision.key: decision.state for decision in found.features}


@pytest.mark.parametrize(("text", "suffix"), [(ARTICLE_YAML, ".yaml"), (ARTICLE_TOML, ".toml")])
def test_the_articles_sample_loads_from_toml_and_yaml(
    tmp_path: Path, text: str, suffix: str
) -> None:
    config = load(tmp_path, text, suffix)
    assert config.features == {
        "fused_mamba": "on",
        "fused_residual": "on",
        "fused_mla_ingress": "on",
        "fused_moe": "on",
        "backend_dispatch": "on",
        "stp": "off",
        "extra_aux_losses": "off",
    }
    assert config.observability == {"goodput": True, "temporal_perf": True, "measurements": True}
    assert config.ledger.entries == ()


@pytest.mark.parametrize(
    "key",
    [key for key, feature in BY_KEY.items() if feature.built and feature.role is not Role.TAX],
)
def test_every_speed_default_switches_its_feature(tmp_path: Path, key: str) -> None:
    on = states(load(tmp_path, f"[speed_defaults]\n{key} = true\n"))
    off = states(load(tmp_path, f"[speed_defaults]\n{key} = false\n"))
    assert (on[key], off[key]) == ("on", "off")
    assert {k: v for k, v in on.items() if k != key} == {k: v for k, v in off.items() if k != key}


def test_an_experimental_tax_switches_the_model(tmp_path: Path) -> None:
    found = resolve(
        load_lane("nam56r-tiny"),
        machine_class="cpu-x86_64-2c",
        device_type="cpu",
        mode="train",
        config=load(tmp_path, "[experimental_taxes]\nextra_aux_losses = true\n"),
    )
    assert found.model_switches == {"extra_aux_losses": True}


def test_a_tax_that_is_not_built_is_refused_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbuilt = dataclasses.replace(BY_KEY["stp"], built=False)
    monkeypatch.setattr("lanewise.lane.resolve.FEATURES", (unbuilt,))
    with pytest.raises(NotBuiltError, match="stp"):
        states(load(tmp_path, "[experimental_taxes]\nstp = true\n"))


@pytest.mark.parametrize("key", ["goodput", "temporal_perf", "measurements"])
def test_every_observability_switch_reaches_the_lane(tmp_path: Path, key: str) -> None:
    lane = load_lane("nam56r-tiny")
    off = apply_config(lane, load(tmp_path, f"[observability]\n{key} = false\n"))
    assert getattr(lane.observability, key) is True
    assert getattr(off.observability, key) is False
    assert off.observability.model_copy(update={key: True}) == lane.observability


def test_the_lanes_own_word_wins_over_the_configuration(tmp_path: Path) -> None:
    config = load(tmp_path, "[speed_defaults]\nfused_moe = true\n[observability]\ngoodput = true\n")
    assert states(config, "features.fused_moe=off")["fused_moe"] == "off"
    lane = apply_config(load_lane("nam56r-tiny", ["observability.goodput=false"]), config)
    assert lane.observability.goodput is False


def test_a_configuration_for_many_lanes_may_name_features_without_blocks_here(
    tmp_path: Path,
) -> None:
    config = load(tmp_path, ARTICLE_YAML, ".yaml")
    lane = apply_config(load_lane("nam56r-tiny", ["model.pattern=AE"]), config)
    assert "fused_mamba" not in lane.features
    assert lane.features["fused_moe"] == "on"


def test_a_yaml_on_and_a_named_state_mean_on(tmp_path: Path) -> None:
    text = 'speed_defaults:\n  fused_moe: on\n  fused_mamba: "off"\n'
    assert load(tmp_path, text, ".yml").features == {"fused_moe": "on", "fused_mamba": "off"}


def test_the_ledger_form_loads_with_scope_and_evidence(tmp_path: Path) -> None:
    config = load(tmp_path, LEDGER_OF_EXPERIENCE_MD)
    (entry,) = config.ledger.entries
    assert entry.feature == "fused_moe"
    assert entry.scope.lanes == ("sha256:9c2f", "sha256:71aa")
    assert len(entry.evidence) == 2
    assert config.features == {}


def test_a_feature_may_hold_several_ledger_entries(tmp_path: Path) -> None:
    text = (
        '[[speed_defaults.fused_moe]]\nstate = "on"\nevidence = []\n'
        'scope = { models = ["m"], machine_class = "h100-sxm" }\n'
        '[[speed_defaults.fused_moe]]\nstate = "off"\nevidence = []\n'
        'scope = { models = ["m"], machine_class = "cpu-x86_64-2c" }\n'
    )
    assert [entry.state for entry in load(tmp_path, text).ledger.entries] == ["on", "off"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[speed_defaults]\nstp = false\n",
            "config.toml:2: speed_defaults.stp: is a tax: it costs step time and never becomes a speed "
            "default (rule R4); move it to experimental_taxes",
        ),
        (
            "[experimental_taxes]\nfused_moe = true\n",
            "config.toml:2: experimental_taxes.fused_moe: is not a tax; move it to speed_defaults",
        ),
        (
            "[speed_defaults]\nfused_mamb = true\n",
            "config.toml:2: speed_defaults.fused_mamb: unknown feature. Did you mean 'fused_mamba'?",
        ),
        (
            "[experimental_taxes]\nstpp = true\n",
            "config.toml:2: experimental_taxes.stpp: unknown tax. Did you mean 'stp'?",
        ),
        (
            "[observability]\ngoodputt = true\n",
            "config.toml:2: observability.goodputt: unknown key. Did you mean 'goodput'?",
        ),
        (
            "[observability]\ngoodput = 1\n",
            "config.toml:2: observability.goodput = 1 is not true or false",
        ),
        (
            "[speed_default]\nx = 1\n",
            "config.toml:1: speed_default: unknown table. Did you mean 'speed_defaults'?",
        ),
        ("speed_defaults = 1\n", "config.toml:1: speed_defaults = 1 is not a table"),
        ("observability = 1\n", "config.toml:1: observability = 1 is not a table"),
        (
            "[speed_defaults]\nfused_moe = 3\n",
            "config.toml:2: speed_defaults.fused_moe = 3 is no state of fused_moe; use one of true, "
            "false, auto, off, on",
        ),
        (
            '[speed_defaults.fused_moe]\nstate = "on"\nevidence = []\n',
            "config.toml:1: speed_defaults.fused_moe.scope: is missing; a ledger entry has state, "
            "scope and evidence",
        ),
        (
            '[speed_defaults.fused_moe]\nstate = "on"\nevidence = []\nscope = { machine_class = "h" }\n',
            "config.toml:4: speed_defaults.fused_moe.scope: names no lane and no model; list digests "
            "under `lanes` or `models`",
        ),
        (
            '[speed_defaults.fused_moe]\nstate = "on"\nevidence = []\n'
            'scope = { lane = ["x"], machine_class = "h" }\n',
            "config.toml:4: speed_defaults.fused_moe.scope.lane: unknown key. Did you mean 'lanes'?",
        ),
        (
            '[speed_defaults.fused_moe]\nstate = "onn"\nevidence = []\n'
            'scope = { lanes = ["x"], machine_class = "h" }\n',
            "config.toml:2: speed_defaults.fused_moe.state = 'onn' is no state; use 'off' or 'on'",
        ),
        (
            '[speed_defaults.fused_moe]\nstate = "on"\nevidence = []\n'
            'scope = { lanes = ["x"], machine_class = "h100" }\n',
            "config.toml:4: speed_defaults.fused_moe.scope.machine_class = 'h100' is no machine class (cpu-x86_64-2c, "
            "h100-sxm-80gb) and none without its memory (h100-sxm); `lanewise doctor` prints this machine's",
        ),
        (
            '[experimental_taxes.stp]\nstate = "on"\n',
            "config.toml:2: experimental_taxes.stp.state = 'on': a recorded tax stays off by default; "
            "to ask for it, write `stp = true` under experimental_taxes",
        ),
        (
            '[experimental_taxes.mtp]\nstate = "off"\n',
            "config.toml:2: experimental_taxes.mtp.state = 'off': a recorded tax stays on by default; "
            "to ask for it, write `mtp = false` under experimental_taxes",
        ),
        (
            '[experimental_taxes.stp]\nstate = "off"\nbudget = 1\n',
            "config.toml:3: experimental_taxes.stp.budget: unknown key. Did you mean 'budget_ratio'?",
        ),
    ],
)
def test_faults_name_place_rule_and_remedy(tmp_path: Path, text: str, expected: str) -> None:
    assert problems_of(tmp_path, text) == [expected]


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    text = "[speed_defaults]\nstp = true\nfused_mo = true\n[x]\n"
    assert len(problems_of(tmp_path, text)) == 3


def test_a_missing_configuration_file(tmp_path: Path) -> None:
    with pytest.raises(LaneError, match="no configuration file"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize("number", ["inf", "nan", "1e999"])
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, number: str) -> None:
    with pytest.raises(LaneError, match="budget_ratio: input should be a finite number"):
        load(tmp_path, f'[experimental_taxes.stp]\nstate = "off"\nbudget_ratio = {number}\n')
