"""Two receipts may meet in one test only when nothing undeclared differs."""

import pytest

from lanewise.receipts.compare import comparable, declared_features, diff
from lanewise.receipts.schema import RunReceipt
from tests.receipts.factory import make_receipt, sha

CONTROL = {
    "experiment.arm": "A",
    "features.0.requested": "off",
    "features.0.effective": "off",
    "backends.0.requested": ["padded.torch"],
    "backends.0.chosen": "padded.torch",
    "backends.0.observed": ["padded.torch"],
    "config_digest": sha("config of the control"),
    "timing.step_duration_seconds.median": 0.145,
}


@pytest.fixture(scope="module")
def control() -> RunReceipt:
    return make_receipt(CONTROL)


@pytest.fixture(scope="module")
def treated() -> RunReceipt:
    return make_receipt()


def test_the_arms_of_an_ablation_are_comparable(control: RunReceipt, treated: RunReceipt) -> None:
    assert declared_features(control, treated) == {"fused_moe"}
    assert comparable(control, treated) == []


def test_a_feature_nobody_declared_forbids_the_comparison(
    control: RunReceipt, treated: RunReceipt
) -> None:
    fields = [difference.field for difference in comparable(control, treated, declared=())]
    assert fields == ["features.fused_moe.effective", "backends.moe_experts.requested"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lane.digest": sha("x")}, "lane.digest"),
        ({"protocol_digest": sha("x")}, "protocol_digest"),
        ({"environment_digest": sha("x")}, "environment_digest"),
        ({"data_digest": sha("x")}, "data_digest"),
        ({"machine.class_digest": sha("x")}, "machine.class_digest"),
        ({"features.1.effective": "off"}, "features.fused_mamba.effective"),
        ({"backends.1.requested": ["recurrence.torch"]}, "backends.ssm_scan.requested"),
    ],
)
def test_each_identity_forbids_the_comparison(
    control: RunReceipt, changes: dict[str, object], field: str
) -> None:
    other = make_receipt(changes)
    (difference,) = comparable(control, other)
    assert (difference.field, difference.blocks) == (field, True)
    assert difference.a != difference.b
    assert [d.field for d in comparable(other, control)] == [field]


def test_a_feature_one_receipt_does_not_know_forbids_the_comparison(treated: RunReceipt) -> None:
    other = make_receipt({"features": [treated.features[0].model_dump()]})
    (difference,) = comparable(treated, other)
    assert (difference.field, difference.a, difference.b) == (
        "features.fused_mamba.effective",
        "on",
        None,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"machine.instance_digest": sha("other machine")},
        {"lane.name": "renamed", "lane.canonical_name": "renamed"},
        {"environment.vcs_dirty": True},
        {"features.1.source": "ledger_lane"},
        {"numerics.loss_last": 1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_no_identity_is_shown_and_forbids_nothing(
    treated: RunReceipt, changes: dict[str, object]
) -> None:
    other = make_receipt(changes)
    assert comparable(treated, other) == []
    assert {d.field for d in diff(treated, other)} >= {
        path.replace("features.1", "features.fused_mamba") for path in changes
    }


def test_diff_puts_what_forbids_first_and_gives_both_values(
    control: RunReceipt, treated: RunReceipt
) -> None:
    other = make_receipt({**CONTROL, "data_digest": sha("x")})
    differences = diff(other, treated)
    assert [d.field for d in differences if d.blocks] == ["data_digest"]
    assert differences[0].field == "data_digest"
    by_field = {d.field: (d.a, d.b) for d in differences}
    assert by_field["timing.step_duration_seconds.median"] == (0.145, 0.1)
    assert by_field["features.fused_moe.effective"] == ("off", "on")
    assert "receipt_id" not in by_field


def test_a_receipt_does_not_differ_from_itself(treated: RunReceipt) -> None:
    assert diff(treated, treated) == []
