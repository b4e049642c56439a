import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanewise.lane.digest import (
    canonical_json,
    config_digest,
    digest,
    lane_digest,
    lane_identity,
    model_digest,
)
from lanewise.lane.load import load_lane

# RFC 8785, appendix B: IEEE 754 bit pattern → serialised number.
RFC_8785_NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize(("bits", "expected"), RFC_8785_NUMBERS.items())
def test_numbers_follow_the_vectors_of_rfc_8785(bits: str, expected: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(number).decode() == expected


def test_the_example_of_rfc_8785_section_3_2() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert canonical_json(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_keys_sort_by_utf_16_code_units_as_in_rfc_8785_section_3_2_3() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\xf6"]
    expected = ["\r", "1", "\x80", "\xf6", "\u20ac", "\U0001f600", "\ufb33"]
    encoded = canonical_json(dict.fromkeys(keys, 0)).decode()
    assert list(json.loads(encoded)) == expected


@given(json_values)
def test_canonical_json_reads_back_as_the_same_value(value: object) -> None:
    assert json.loads(canonical_json(value), parse_int=float) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_read_back_bit_for_bit(value: float) -> None:
    restored = float(json.loads(canonical_json(value)))
    assert restored == value
    # ECMAScript has one zero; every other number keeps its sign.
    assert value == 0 or math.copysign(1, restored) == math.copysign(1, value)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 9)))
def test_order_of_insertion_does_not_matter(value: dict[str, int]) -> None:
    reordered = dict(reversed(value.items()))
    assert digest(value) == digest(reordered)


def test_whole_floats_and_integers_are_one_number() -> None:
    assert canonical_json([1, 1.0, -0.0]) == b"[1,1,0]"


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, "\ud800"])
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="canonical JSON cannot hold"):
        canonical_json({"key": value})


@pytest.mark.parametrize("value", [{1: 2}, b"bytes", {1, 2}])
def test_types_without_a_json_form_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="canonical JSON"):
        canonical_json(value)


def test_digest_is_the_sha256_of_the_canonical_form() -> None:
    # Computed with `printf '{"a":1}' | sha256sum`.
    assert digest({"a": 1.0}) == (
        "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    )


@pytest.mark.parametrize(
    "override",
    [
        "name=another",
        "features.fused_moe=off",
        "ops.ssm_scan=chunked.torch",
        "observability.goodput=false",
        "topology.machine=h100-sxm-80gb",
    ],
)
def test_lane_digest_ignores_what_both_arms_may_differ_in(override: str) -> None:
    assert lane_digest(load_lane("nam56r-tiny", [override])) == lane_digest(
        load_lane("nam56r-tiny")
    )


@pytest.mark.parametrize(
    "override",
    [
        "model.hidden_size=256",
        "model.pattern=AEMR",
        "model.moe.top_k=1",
        "model.moe.bias_update_rate=0.0",
        "batch.micro_batch_size=4",
        "batch.sequence_length=128",
        "data.seed=1",
        "data.source=corpus.jsonl",
        "optimizer.learning_rate=1e-3",
        "precision.compute=bf16",
        "topology.dp_shard=2",
        "seed=1",
    ],
)
def test_lane_digest_changes_with_what_is_computed(override: str) -> None:
    assert lane_digest(load_lane("nam56r-tiny", [override])) != lane_digest(
        load_lane("nam56r-tiny")
    )


def test_lane_identity_holds_no_path_and_no_name() -> None:
    lane = load_lane("nam56r-tiny", ["data.source=/data/x.jsonl", "data.tokenizer=/data/t.json"])
    text = canonical_json(lane_identity(lane)).decode()
    assert "/data" not in text
    assert lane.name not in text
    other = load_lane("nam56r-tiny", ["data.source=/mnt/y.jsonl", "data.tokenizer=u.json"])
    assert lane_digest(other) == lane_digest(lane)


def test_model_digest_covers_dimensions_and_nothing_else() -> None:
    base = load_lane("nam56r-tiny")
    assert model_digest(load_lane("nam56r-tiny", ["batch.micro_batch_size=2"])) == model_digest(
        base
    )
    assert model_digest(load_lane("nam56r-tiny", ["model.num_layers=24"])) != model_digest(base)


def test_config_digest_covers_features_and_ops() -> None:
    base = config_digest("sha256:0", {"fused_moe": "on"}, {"add_norm": ("fused.torch",)})
    assert base != config_digest("sha256:1", {"fused_moe": "on"}, {"add_norm": ("fused.torch",)})
    assert base != config_digest("sha256:0", {"fused_moe": "off"}, {"add_norm": ("fused.torch",)})
    assert base != config_digest("sha256:0", {"fused_moe": "on"}, {"add_norm": ()})
