from dataclasses import replace

import pytest

from lanewise.errors import LaneError, NotBuiltError, UsageError
from lanewise.lane import resolve as resolve_module
from lanewise.lane.digest import lane_digest, model_digest
from lanewise.lane.features import BY_KEY, FEATURES, Role, Setting
from lanewise.lane.ledger import Ledger, LedgerEntry, Scope
from lanewise.lane.load import load_lane
from lanewise.lane.resolve import OP_NAMES, resolve, with_seed
from lanewise.lane.resolved import ResolvedLane

CPU = "cpu-x86_64-2c"


def resolved(*overrides: str, **arguments: object) -> ResolvedLane:
    settings = {"machine_class": CPU, "device_type": "cpu", "mode": "train", **arguments}
    return resolve(load_lane("nam56r-tiny", overrides), **settings)  # type: ignore[arg-type]


def entry(feature: str, state: str, **scope: object) -> LedgerEntry:
    return LedgerEntry(
        feature=feature,
        state=state,
        scope=Scope.model_validate({"machine_class": CPU, **scope}),
        evidence=(),
    )


def decided(found: ResolvedLane, key: str) -> tuple[str, str]:
    decision = next(decision for decision in found.features if decision.key == key)
    return decision.state, decision.source


def test_without_any_word_the_stance_speaks() -> None:
    found = resolved()
    assert {decision.source for decision in found.features} == {"stance"}
    applicable = [f for f in FEATURES if f.applies_to(found.lane.model)]
    assert {d.key: d.state for d in found.features} == {f.key: f.default_state for f in applicable}


def test_the_order_is_explicit_then_this_lane_then_this_class_then_stance() -> None:
    lane = load_lane("nam56r-tiny")
    of_lane = entry("fused_moe", "off", lanes=[lane_digest(lane)])
    of_class = entry("fused_moe", "on", models=[model_digest(lane)])
    both = Ledger(entries=(of_lane, of_class))
    assert decided(resolved(ledger=both), "fused_moe") == ("off", "ledger_lane")
    assert decided(resolved(ledger=Ledger(entries=(of_class,))), "fused_moe") == (
        "on",
        "ledger_class",
    )
    assert decided(resolved("features.fused_moe=on", ledger=both), "fused_moe") == (
        "on",
        "explicit",
    )
    assert decided(
        resolved("features.fused_moe=on", ledger=both, overrides={"fused_moe": "off"}), "fused_moe"
    ) == ("off", "ablation")


def test_a_class_default_reaches_a_lane_with_another_batch_and_not_another_model() -> None:
    ledger = Ledger(
        entries=(entry("fused_moe", "off", models=[model_digest(load_lane("nam56r-tiny"))]),)
    )
    other_batch = resolved("batch.micro_batch_size=2", ledger=ledger)
    assert decided(other_batch, "fused_moe") == ("off", "ledger_class")
    other_model = resolved("model.hidden_size=64", ledger=ledger)
    assert decided(other_model, "fused_moe") == ("on", "stance")


def test_a_ledger_never_speaks_for_another_machine() -> None:
    lanes = [lane_digest(load_lane("nam56r-tiny"))]
    gpu = Ledger(entries=(entry("fused_moe", "off", lanes=lanes, machine_class="h100-sxm"),))
    assert decided(resolved(ledger=gpu), "fused_moe") == ("on", "stance")
    on_gpu = resolved(ledger=gpu, machine_class="h100-sxm-80gb", device_type="cuda")
    assert decided(on_gpu, "fused_moe") == ("off", "ledger_lane")
    lookalike = resolved(ledger=gpu, machine_class="h100-sxm5-80gb", device_type="cuda")
    assert decided(lookalike, "fused_moe") == ("on", "stance")


def test_of_equal_entries_the_last_speaks() -> None:
    lanes = [lane_digest(load_lane("nam56r-tiny"))]
    ledger = Ledger(
        entries=(entry("fused_moe", "on", lanes=lanes), entry("fused_moe", "off", lanes=lanes))
    )
    assert decided(resolved(ledger=ledger), "fused_moe") == ("off", "ledger_lane")


def test_states_become_op_preferences_and_switches() -> None:
    found = resolved("features.regional_compile=on", "features.fused_mamba=off")
    assert found.op_preferences["ssm_scan"] == ("recurrence.torch",)
    assert found.op_preferences["moe_experts"] == ("sorted.torch",)
    assert found.op_preferences["attention_core"] == ()
    assert set(found.op_preferences) == set(OP_NAMES) - {"ssd_scan", "mimo_scan"}
    assert found.runtime_switches == {"regional_compile": True}
    assert found.model_switches == {}


def test_a_feature_of_two_ops_sets_the_one_that_the_lane_runs() -> None:
    found = resolved("model.mamba.version=mamba2", "features.fused_mamba=off")
    assert found.op_preferences["ssd_scan"] == ("recurrence.torch",)
    assert "ssm_scan" not in found.op_preferences
    found = resolved("model.mamba.mimo_rank=2", "features.fused_mamba=off")
    assert found.op_preferences["mimo_scan"] == ("recurrence.torch",)
    assert "ssm_scan" not in found.op_preferences


def test_an_op_named_by_hand_wins_as_a_single_name() -> None:
    found = resolved("ops.ssm_scan=recurrence.torch")
    assert found.op_preferences["ssm_scan"] == ("recurrence.torch",)


def test_a_pinned_op_cannot_be_ablated() -> None:
    with pytest.raises(LaneError, match="pins the op that feature fused_mamba switches"):
        resolved("ops.ssm_scan=recurrence.torch", overrides={"fused_mamba": "on"})


def test_only_features_with_blocks_in_the_lane_are_listed() -> None:
    found = resolved("model.pattern=AE")
    keys = {decision.key for decision in found.features}
    assert "fused_mamba" not in keys
    assert {"fused_moe", "fused_mla_ingress", "fused_residual"} <= keys
    assert "ssm_scan" not in found.op_preferences


def test_a_feature_without_blocks_in_the_lane_is_refused_when_asked_for() -> None:
    with pytest.raises(
        LaneError, match=r"fused_mamba = 'on' .* touches M blocks and the pattern AE"
    ):
        resolved("model.pattern=AE", "features.fused_mamba=on")
    with pytest.raises(LaneError, match="touches M blocks"):
        resolved("model.pattern=AE", overrides={"fused_mamba": "off"})
    resolved("model.pattern=AE", "features.fused_mamba=off")


def test_unknown_features_and_states_get_suggestions() -> None:
    with pytest.raises(LaneError, match=r"no feature 'fused_mo'\. Did you mean 'fused_moe'\?"):
        resolved(overrides={"fused_mo": "on"})
    with pytest.raises(LaneError, match=r"ablation.fused_moe = 'onn' .* Did you mean 'on'\?"):
        resolved(overrides={"fused_moe": "onn"})


@pytest.mark.parametrize("key", ["fused_mla_projection"])
def test_a_feature_that_is_not_built_may_be_off_and_not_on(key: str) -> None:
    assert decided(resolved(f"features.{key}=off"), key) == ("off", "explicit")
    with pytest.raises(NotBuiltError, match=f"feature {key} = 'on'"):
        resolved(f"features.{key}=on")


GPU = {"machine_class": "h100-sxm-80gb", "device_type": "cuda"}


def test_a_state_without_a_setting_for_the_device_fails_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_key = dict(resolve_module.BY_KEY)
    only_cpu = {
        name: Setting(ops={"moe_experts": {"cpu": setting.ops["moe_experts"]["cpu"]}})
        for name, setting in by_key["fused_moe"].settings.items()
    }
    by_key["fused_moe"] = replace(by_key["fused_moe"], settings=only_cpu)
    monkeypatch.setattr(resolve_module, "BY_KEY", by_key)
    with pytest.raises(UsageError, match="names no backend of moe_experts for device cuda"):
        resolved("features.fused_moe=on", **GPU)
    with pytest.raises(UsageError, match="names no backend of moe_experts for device cuda"):
        resolved(overrides={"fused_moe": "off"}, **GPU)
    assert resolved(**GPU).op_preferences["moe_experts"] == ()


SPEED_FEATURES = [
    f.key for f in FEATURES if f.built and f.role is not Role.TAX and f.key != "regional_compile"
]


@pytest.mark.parametrize("key", SPEED_FEATURES)
def test_every_speed_feature_names_two_states_of_backends_on_a_gpu(key: str) -> None:
    ops = BY_KEY[key].ops_for(resolved().lane.model)
    off, on = (resolved(overrides={key: state}, **GPU).op_preferences for state in ("off", "on"))
    assert {op for op in off if off[op] != on[op]} == set(ops)


def test_the_control_of_the_optimizer_is_what_torch_takes_by_default_on_each_device() -> None:
    on_cpu = resolved(overrides={"fused_optimizer": "off"}).op_preferences
    on_gpu = resolved(overrides={"fused_optimizer": "off"}, **GPU).op_preferences
    assert on_cpu["optimizer_step"] == ("per_tensor.torch",)
    assert on_gpu["optimizer_step"] == ("foreach.torch",)
    assert "CUDA default" in BY_KEY["fused_optimizer"].note_on("cuda")
    assert "CPU default" in BY_KEY["fused_optimizer"].note_on("cpu")


def test_machine_and_device_must_agree() -> None:
    with pytest.raises(UsageError, match="nickname"):
        resolved(machine_class="h200", device_type="cuda")
    with pytest.raises(UsageError, match="has no device 'cuda'; use device cpu"):
        resolved(device_type="cuda")
    with pytest.raises(LaneError, match="is for machine h100-sxm-80gb, this is cpu-x86_64-2c"):
        resolved("topology.machine=h100-sxm-80gb")
    assert resolved(f"topology.machine={CPU}").machine_class == CPU


def test_both_arms_share_the_lane_digest_and_differ_in_the_config_digest() -> None:
    on = resolved(overrides={"fused_moe": "on"})
    off = resolved(overrides={"fused_moe": "off"})
    assert on.digest == off.digest
    assert on.config_digest != off.config_digest
    assert resolved().config_digest == on.config_digest


def test_a_resolved_lane_survives_its_own_json() -> None:
    found = resolved("features.fused_moe=off")
    assert ResolvedLane.model_validate_json(found.model_dump_json()) == found


def test_another_seed_is_what_the_lane_would_be_with_it() -> None:
    base = resolved("seed=2", "data.seed=5", mode="ablate", overrides={"fused_moe": "off"})
    other = resolved("seed=6", "data.seed=9", mode="ablate", overrides={"fused_moe": "off"})
    assert with_seed(base, 6) == other
    assert with_seed(base, 2) == base
