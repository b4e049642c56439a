"""Why the sizes of a model do not allow a tax; asked only where the tax is switched on."""

from __future__ import annotations

from fractions import Fraction

from lanewise.lane.pattern import layer_letters
from lanewise.lane.primes import has_primes
from lanewise.lane.schema import ModelSpec, NgramEmbeddingSpec
from lanewise.lane.structure import MIN_BUCKETS
from lanewise.lane.topology import Fault, divisors_in_words

DEPTH_ROUTED_LETTERS = frozenset("ED")
"""Token-wise blocks: what they do to one token does not depend on others."""


def engram_misfit(model: ModelSpec) -> str | None:
    """Why the engram branch cannot be built, or None."""
    spec = model.engram
    if model.hidden_size % spec.bottleneck_ratio:
        return (
            f"model.engram.bottleneck_ratio = {spec.bottleneck_ratio} does not divide hidden_size = "
            f"{model.hidden_size}; use {divisors_in_words(model.hidden_size)}"
        )
    if not spec.orders or len(set(spec.orders)) != len(spec.orders):
        return f"model.engram.orders = {list(spec.orders)} must name at least one order, and none twice"
    return None


def depth_routing_misfit(model: ModelSpec) -> str | None:
    """Why no layer can be routed by depth, or None."""
    spec = model.depth_routing
    if not depth_routed_layers(model):
        return (
            f"model.depth_routing.num_first_layers_kept = {spec.num_first_layers_kept} leaves no E or D layer of the "
            f"{model.num_layers} layers of {model.pattern}; lower it"
        )
    if exact_share(spec.capacity_factor) <= 0:
        return (
            f"model.depth_routing.capacity_factor = {spec.capacity_factor} lets no token through; "
            "use a number above 0, at most 1"
        )
    return None


def exact_share(capacity_factor: float) -> Fraction:
    """The capacity factor as a small fraction: floors of its multiples must add up, and products of floats do not."""
    return Fraction(str(capacity_factor)).limit_denominator(1 << 20)


def slots(capacity_factor: Fraction, length: int) -> int:
    """Tokens of a row that a block routed by depth computes: max(1, ⌊c·T⌋)."""
    return max(1, length * capacity_factor.numerator // capacity_factor.denominator)


def metadata_embeddings_misfit(model: ModelSpec) -> str | None:
    """Why the metadata embeddings cannot be built, or None."""
    num_buckets = model.metadata_embeddings.num_buckets
    if num_buckets < MIN_BUCKETS:
        return (
            f"model.metadata_embeddings.num_buckets = {num_buckets} is less than the {MIN_BUCKETS} character classes; "
            f"use at least {MIN_BUCKETS}"
        )
    return None


def ngram_fault(spec: NgramEmbeddingSpec) -> Fault | None:
    """What is wrong with the table [model.ngram_embedding], or None."""
    path = ("model", "ngram_embedding")
    if not spec.orders:
        return (
            (*path, "orders"),
            '= [] hashes nothing; set model.ngram_embedding = "none" instead',
        )
    if len(set(spec.orders)) != len(spec.orders):
        return (*path, "orders"), f"= {list(spec.orders)} names an order twice; name each once"
    num_tables = len(spec.orders) * spec.num_heads
    if not has_primes(num_tables, at_most=spec.num_rows):
        return (
            (*path, "num_rows"),
            f"= {spec.num_rows} is too small: {len(spec.orders)} orders × {spec.num_heads} heads need {num_tables} "
            "distinct primes up to it, one modulus each; give more rows or fewer heads",
        )
    return None


def depth_routed_layers(model: ModelSpec) -> tuple[str, ...]:
    """Letters of the layers that depth routing wraps."""
    kept = model.depth_routing.num_first_layers_kept
    return tuple(letter for letter in layer_letters(model)[kept:] if letter in DEPTH_ROUTED_LETTERS)
