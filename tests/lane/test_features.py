import pytest

from lanewise.lane.families import FAMILIES
from lanewise.lane.features import BY_KEY, FEATURES, Role
from lanewise.lane.load import load_lane


def test_the_articles_seven_families_word_for_word() -> None:
    assert [(family.title, family.speed_role, family.default_stance) for family in FAMILIES] == [
        ("Fused Mamba path", "Direct hot-path speed win", "Default on when the model uses it"),
        ("Fused residual helpers", "Repeated small wins that compound", "Default on"),
        ("Narrow MLA ingress fusion", "Direct local win", "Default on if validated"),
        ("Broad MLA projection fusion", "Conditional / needs repeated proof", "Keep selective"),
        ("Fused MoE dispatch and compute", "Major throughput lever", "Treat as core optimization"),
        ("Backend bridge / dispatcher", "Indirect speed enabler", "Keep centralized"),
        ("STP and similar aux features", "Measured tax", "Keep experimental"),
    ]


def test_every_family_has_a_feature_and_every_feature_a_known_family() -> None:
    families = {family.key for family in FAMILIES}
    assert {feature.family for feature in FEATURES} - {None} == families


def test_every_feature_has_a_control_and_a_default_among_its_states() -> None:
    for feature in FEATURES:
        assert feature.states[0] == "off"
        assert feature.default_state in feature.states
        assert feature.control_note
        assert (feature.tax_budget_ratio is not None) == (feature.role is Role.TAX)
        assert feature.built or feature.default_state == "off"


def test_keys_are_unique() -> None:
    assert len(BY_KEY) == len(FEATURES)


@pytest.mark.parametrize(
    ("lane", "overrides", "key", "reason"),
    [
        ("dense-tiny", [], "backend_dispatch", None),
        ("dense-tiny", [], "fused_residual", None),
        ("dense-tiny", [], "fused_mla_ingress", "it touches A blocks and the pattern GD has none"),
        ("nam56r-tiny", [], "fused_mla_ingress", None),
        (
            "nam56r-tiny",
            ["model.attention.form=absorbed"],
            "fused_mla_ingress",
            "it needs model.attention.form = expanded and the lane has absorbed",
        ),
        ("nam56r-tiny", ["model.attention.form=absorbed"], "backend_dispatch", None),
    ],
)
def test_a_feature_applies_where_its_op_runs(
    lane: str, overrides: list[str], key: str, reason: str | None
) -> None:
    assert BY_KEY[key].why_not(load_lane(lane, overrides).model) == reason


def test_a_tax_is_on_by_default_only_where_a_table_of_the_lane_asks_for_it() -> None:
    on = [f.key for f in FEATURES if f.role is Role.TAX and f.default_state != "off"]
    assert on == ["mtp"]
    assert BY_KEY["mtp"].table == "mtp"
    assert BY_KEY["mtp"].settings["on"].model == {"mtp": True}
