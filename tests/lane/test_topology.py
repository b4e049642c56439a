import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanewise.lane.load import load_lane
from lanewise.lane.schema import TopologySpec
from lanewise.lane.topology import divisors_in_words, faults, topology_name, world_size


@pytest.mark.parametrize(
    ("degrees", "name", "processes"),
    [
        ({}, "single", 1),
        ({"dp_shard": 8, "tp": 2}, "dp8-tp2", 16),
        ({"dp_shard": 8, "ep": 4}, "dp8-ep4", 8),
        ({"dp_replicate": 2, "dp_shard": 4, "tp": 2, "sp": True}, "dpr2-dp4-tp2sp", 16),
        ({"pp": 2, "cp": 2}, "cp2-pp2", 4),
    ],
)
def test_name_and_world_size(degrees: dict[str, int], name: str, processes: int) -> None:
    topology = TopologySpec(**degrees)
    assert topology_name(topology) == name
    assert world_size(topology) == processes


@given(
    st.fixed_dictionaries({key: st.integers(1, 8) for key in ("dp_shard", "tp", "cp", "pp", "ep")}),
    st.fixed_dictionaries({key: st.integers(1, 8) for key in ("dp_shard", "tp", "cp", "pp", "ep")}),
)
def test_different_degrees_have_different_names(a: dict[str, int], b: dict[str, int]) -> None:
    same_name = topology_name(TopologySpec(**a)) == topology_name(TopologySpec(**b))
    assert same_name == (a == b)


@pytest.mark.parametrize(
    ("degrees", "key", "words"),
    [
        ({"dp_shard": 4, "ep": 3}, "ep", "does not divide dp_shard × cp = 4"),
        ({"dp_shard": 16, "ep": 16}, "ep", "does not divide model.moe.num_experts = 8"),
        ({"tp": 3}, "tp", "does not divide model.attention.num_heads = 4; use 1, 2 or 4"),
        ({"tp": 2, "etp": 3}, "etp", "does not divide tp = 2"),
        ({"sp": True}, "sp", "needs tp above 1"),
        ({"nodes": 2}, "nodes", "does not divide the world size 1"),
        ({"pp": 13}, "pp", "exceeds model.num_layers = 12"),
    ],
)
def test_illegal_degrees_name_the_rule(degrees: dict[str, int], key: str, words: str) -> None:
    found = list(faults(TopologySpec(**degrees), load_lane("nam56r-tiny").model))
    assert any(path == ("topology", key) and words in message for path, message in found), found


@pytest.mark.parametrize(
    ("overrides", "degree", "words"),
    [
        ([], 4, "does not divide model.grouped_query.num_kv_heads = 2; use 1 or 2"),
        ([], 8, "does not divide model.grouped_query.num_heads = 4; use 1, 2 or 4"),
        (["model.mlp.mlp_hidden_size=321"], 2, "does not divide model.mlp.mlp_hidden_size = 321"),
    ],
)
def test_tensor_parallel_degrees_divide_a_dense_model(
    overrides: list[str], degree: int, words: str
) -> None:
    model = load_lane("dense-tiny", overrides).model
    found = list(faults(TopologySpec(tp=degree), model))
    assert any(path == ("topology", "tp") and words in message for path, message in found), found


def test_legal_degrees_have_no_fault() -> None:
    topology = TopologySpec(nodes=2, dp_shard=8, tp=2, sp=True, ep=4, etp=2)
    model = load_lane("nam56r-tiny", ["model.mamba.num_groups=2"]).model
    assert list(faults(topology, model)) == []


@given(st.integers(1, 300))
def test_divisors_are_exactly_those_that_divide(number: int) -> None:
    listed = [int(word) for word in divisors_in_words(number).replace(" or ", ", ").split(", ")]
    assert listed == [candidate for candidate in range(1, number + 1) if number % candidate == 0]
