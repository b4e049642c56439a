import pytest

from lanewise.lane.compare import diff_lanes
from lanewise.lane.load import load_lane


def test_a_lane_equals_itself() -> None:
    difference = diff_lanes(load_lane("nam56r"), load_lane("nam56r"))
    assert difference.is_comparable
    assert difference.other == ()


@pytest.mark.parametrize(
    ("override", "path", "comparable"),
    [
        ("batch.micro_batch_size=4", "batch.micro_batch_size", False),
        ("seed=1", "seed", False),
        ("model.mtp={depth=1, mlp_hidden_size=64}", "model.mtp.depth", False),
        ("name=x", "name", True),
        ("features.fused_moe=off", "features.fused_moe", True),
        ("ops.add_norm=fused.torch", "ops.add_norm", True),
        ("observability.goodput=false", "observability.goodput", True),
        ("topology.machine=h100-sxm-80gb", "topology.machine", True),
    ],
)
def test_fields_are_sorted_by_whether_they_decide(
    override: str, path: str, comparable: bool
) -> None:
    difference = diff_lanes(load_lane("nam56r-tiny"), load_lane("nam56r-tiny", [override]))
    assert difference.is_comparable == comparable
    side = difference.other if comparable else difference.identity
    assert path in [item.path for item in side]
    assert not (difference.identity if comparable else difference.other)


def test_two_files_of_data_differ_outside_the_digest() -> None:
    a = load_lane("nam56r-tiny", ["data.source=a.jsonl"])
    b = load_lane("nam56r-tiny", ["data.source=b.jsonl"])
    difference = diff_lanes(a, b)
    assert difference.is_comparable
    assert [(item.path, item.a, item.b) for item in difference.other] == [
        ("data.source", "a.jsonl", "b.jsonl")
    ]
