"""What taxes add, counted by hand."""

import pytest

from lanewise.lane import tax_flops
from lanewise.lane.flops import components
from lanewise.lane.hardware_flops import conventions
from lanewise.lane.load import load_lane
from lanewise.lane.primes import has_primes, largest_primes

TINY = load_lane("nam56r-tiny")
"""d = 128, 12 layers: 3 A, 5 E of which 3 lie beyond the first 4, T = 64."""


def test_engram_counts_its_maps_averages_filter_and_gate() -> None:
    found, grouped = tax_flops.engram(TINY)
    assert (found.name, found.count, grouped.count) == ("engram_attention", 3, 0)
    assert found.params.total == 128 * 32 + 3 * 32 * 32 + 32 * 128
    assert sum(term.forward for term in found.terms) == 2 * found.params.total + (2 + 3 + 4) * 32
    upgraded = load_lane(
        "nam56r-tiny", ["model.engram.gated=true", "model.engram.conv_kernel_size=4"]
    )
    more, _ = tax_flops.engram(upgraded)
    assert more.params.total - found.params.total == 32 * 128 + 4 * 32
    extra = sum(term.forward for term in more.terms) - sum(term.forward for term in found.terms)
    assert extra == 2 * 32 * 128 + 2 * 4 * 32 + 3 * 128


def test_hyper_connections_count_reading_mixing_and_writing() -> None:
    found = tax_flops.hyper_connections(TINY)
    assert found.count == 12
    assert found.params.total == 4 + 4 + 16
    assert found.terms[0].forward == 2 * 4 * 128 + 2 * 16 * 128 + 2 * 4 * 128


def test_metadata_embeddings_are_lookups() -> None:
    found = tax_flops.metadata_embeddings(TINY)
    assert found.params.total == 7 * 64 * 128
    assert found.terms == ()


def test_depth_routing_saves_what_skipped_tokens_do_not_compute() -> None:
    (found,) = tax_flops.depth_routing(TINY)
    moe = next(component for component in components(TINY) if component.name == "moe")
    assert (found.name, found.count, found.params.total) == ("depth_routing_moe", 3, 128)
    assert found.training("linear") == 3 * 2 * 128 - 0.5 * moe.training("linear")
    both = load_lane(
        "nam56r-tiny",
        [
            "model.pattern=AEAD",
            "model.mlp={mlp_hidden_size=64}",
            "model.depth_routing={num_first_layers_kept=0, capacity_factor=0.3}",
        ],
    )
    mlp, moe_routed = tax_flops.depth_routing(both)
    assert (mlp.name, mlp.count) == ("depth_routing_mlp", 3)
    assert moe_routed.count == 3
    assert mlp.terms[1].forward == pytest.approx(-(1 - 19 / 64) * 2 * 3 * 128 * 64)


def test_only_taxes_that_are_on_are_counted() -> None:
    assert tax_flops.tax_components(TINY, {"extra_aux_losses": True, "engram": False}) == ()
    names = [c.name for c in tax_flops.tax_components(TINY, dict.fromkeys(tax_flops.TAXES, True))]
    assert names == [
        "metadata_embeddings",
        "engram_attention",
        "hyper_connections",
        "depth_routing_moe",
    ]
    no_attention = load_lane("nam56r-tiny", ["model.pattern=EM", "model.attention=none"])
    assert tax_flops.tax_components(no_attention, {"engram": True}) == ()


def test_hardware_flops_count_taxes_and_their_recomputation() -> None:
    switches = dict.fromkeys(tax_flops.TAXES, True)
    taxes = tax_flops.tax_components(TINY, switches)
    forward = {c.name: c.count * sum(term.forward for term in c.terms) for c in taxes}
    plain, taxed = conventions(TINY, {}), conventions(TINY, switches)
    assert taxed.lane_numerator == plain.lane_numerator
    assert taxed.hardware - plain.hardware == pytest.approx(3 * sum(forward.values()))
    again = load_lane("nam56r-tiny", ["recompute.attention=full", "recompute.moe=full"])
    repeated = conventions(again, switches).hardware - conventions(again, {}).hardware
    more = forward["engram_attention"] + forward["depth_routing_moe"]
    assert repeated == pytest.approx(3 * sum(forward.values()) + more)


def test_primes_are_the_largest_and_falling() -> None:
    assert largest_primes(4, at_most=30) == (29, 23, 19, 17)
    assert largest_primes(2, at_most=3) == (3, 2)
    assert largest_primes(0, at_most=1) == ()
    assert has_primes(2, at_most=3)
    assert not has_primes(3, at_most=3)
    with pytest.raises(ValueError, match="3 distinct primes up to 4 are needed and there are 2"):
        largest_primes(3, at_most=4)
