"""FLOPs a lane really executes, beside the two conventions that stay put: three numbers per token, side by side.

- **lane numerator** (`lane.flops`, `lanewise-1`): what the model's mathematics asks for; shared by every arm.
- **hardware**: the numerator in the form that is executed. Changes against it, each an own row:
  recomputation (`[recompute] full` repeats a sub-layer's forward; `selective` is counted as none, though it
  multiplies the scores of dense attention again where a backend's own products make them); attention in
  the latent space (sparse layers always, dense layers with `form = "absorbed"`): core width 2·C + D_r per head instead of
  D_n + D_r + D_v, C = kv_lora_rank, projections unchanged since q W_uk and P·c W_uv replace k_nope and v entry by entry;
  the indexer's scores, of which only those of the selected keys are differentiated; MTP switched off; taxes switched on.
  The dense warm-up of the indexers is in the numerator itself (`lane.flops`).
  Scans count as recurrences and experts without padding whatever backend runs, so that a backend's extra arithmetic
  stays its own affair.
- **6·N**: 6 × active parameters, the rule of thumb that public numbers often mean.

Recomputation counts a whole forward; torch stops it after the last tensor it needs, so the product of a sub-layer's output
map (half of an MLP without a gate) is counted and not run.

Legend: S sequence length, H heads, H_I and D_I indexer heads and head dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lanewise.lane.flops import (
    Component,
    Term,
    causal_keys,
    components,
    lane_flops,
    selected_keys,
)
from lanewise.lane.index_layers import is_dense_warmup
from lanewise.lane.schema import AttentionSpec, Lane
from lanewise.lane.tax_flops import tax_components

FAMILY_OF_COMPONENT = {
    "attention_dense": "attention",
    "attention_sparse_reused_index": "attention",
    "attention_sparse_own_index": "attention",
    "moe": "moe",
    "mamba": "mamba",
    "recurrent": "recurrent",
    "grouped_query": "grouped_query",
    "mlp": "mlp",
    "mtp_block": "mtp",
    "mtp_block_reused": "mtp",
    "engram_attention": "attention",
    "engram_grouped_query": "grouped_query",
    "depth_routing_moe": "moe",
    "depth_routing_mlp": "mlp",
}
"""Component → its key in `[recompute]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One difference between what is executed and the lane numerator.

    Attributes:
        reason: e.g. `recomputed forward` or `absorbed core`.
        component: the component it concerns.
        flops_per_token: training FLOPs per token more (or less) than the numerator.
    """

    reason: str
    component: str
    flops_per_token: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Conventions:
    """Training FLOPs per token by three conventions.

    Attributes:
        lane_numerator: `lanewise-1`.
        hardware: lane numerator plus all changes.
        six_n_active: 6 × active parameters.
        changes: what separates hardware from lane numerator.
    """

    lane_numerator: float
    hardware: float
    six_n_active: float
    changes: tuple[Change, ...]


def conventions(lane: Lane, model_switches: Mapping[str, bool]) -> Conventions:
    """Count a lane three ways.

    Args:
        lane: a validated lane.
        model_switches: which taxes are on, as resolved.
    """
    counted = lane_flops(lane)
    changes = tuple(
        change for change in _changes(lane, model_switches) if change.flops_per_token != 0
    )
    return Conventions(
        lane_numerator=counted.training_flops_per_token,
        hardware=counted.training_flops_per_token
        + sum(change.flops_per_token for change in changes),
        six_n_active=6.0 * counted.params_active,
        changes=changes,
    )


def _changes(lane: Lane, switches: Mapping[str, bool]) -> Iterator[Change]:
    for component in components(lane):
        if component.name.startswith("mtp_") and not switches.get("mtp", True):
            yield Change(
                reason="switched off",
                component=component.name,
                flops_per_token=-component.count * _training(component),
            )
            continue
        yield from _attention_changes(lane, component)
        yield from _recomputation(lane, component)
    for tax in tax_components(lane, switches):
        yield Change(
            reason="tax switched on",
            component=tax.name,
            flops_per_token=tax.count * _training(tax),
        )
        yield from _recomputation(lane, tax)


def _attention_changes(lane: Lane, component: Component) -> Iterator[Change]:
    spec = lane.model.attention
    if spec is None or is_dense_warmup(lane.model):
        return
    if _is_absorbed(component, spec):
        yield Change(
            reason="absorbed core",
            component=component.name,
            flops_per_token=component.count
            * _attention_core(component).training
            * (_absorbed_width(spec) - 1),
        )
    if component.name == "attention_sparse_own_index":
        yield Change(
            reason="scores of unselected keys have no backward",
            component=component.name,
            flops_per_token=component.count * _indexer_change(lane, spec),
        )


def _absorbed_width(spec: AttentionSpec) -> float:
    """Core FLOPs in the latent space ÷ core FLOPs with keys and values per head."""
    expanded = spec.qk_nope_head_dim + spec.qk_rope_head_dim + spec.v_head_dim
    return (2 * spec.kv_lora_rank + spec.qk_rope_head_dim) / expanded


def _indexer_change(lane: Lane, spec: AttentionSpec) -> float:
    """All visible keys are scored once without backward, the selected ones again with it: −2·f(S) + 3·f(selected)."""
    sparse = spec.sparse
    if sparse is None or sparse.indexer_loss_coefficient == 0:
        return 0.0
    length = lane.batch.sequence_length
    per_key = 2.0 * sparse.index_num_heads * (sparse.index_head_dim + 1)
    return per_key * (3 * selected_keys(length, sparse.top_k) - 2 * causal_keys(length))


def _recomputation(lane: Lane, component: Component) -> Iterator[Change]:
    family = FAMILY_OF_COMPONENT.get(component.name)
    if family is None or getattr(lane.recompute, family) != "full" or is_dense_warmup(lane.model):
        return  # what is frozen has no backward pass to repeat it in
    forward = sum(term.forward for term in component.terms)
    spec = lane.model.attention
    if spec is not None and _is_absorbed(component, spec):
        forward += _attention_core(component).forward * (_absorbed_width(spec) - 1)
    yield Change(
        reason="recomputed forward",
        component=component.name,
        flops_per_token=component.count * forward,
    )


def _is_absorbed(component: Component, spec: AttentionSpec) -> bool:
    if component.name.startswith("attention_sparse"):
        return True
    return spec.form == "absorbed" and component.name.startswith(("attention_", "mtp_block"))


def _attention_core(component: Component) -> Term:
    return next(term for term in component.terms if term.kind == "core" and not term.is_indexer)


def _training(component: Component) -> float:
    return sum(term.training for term in component.terms)
