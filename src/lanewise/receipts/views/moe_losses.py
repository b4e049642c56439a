"""View `moe-losses`: load-balance loss and z-loss of every E layer, before and after their weights."""

from __future__ import annotations

from typing import Any, Literal

from lanewise.receipts.extension_keys import LAYER_LOSSES_KEY, LOSS_PARTS_KEY
from lanewise.receipts.record import Record
from lanewise.receipts.views.base import ArticleNames, Reasons, Source, View, layers_of

NAMES: ArticleNames = {
    "layers.aux_loss_last": "last_aux_loss",
    "layers.z_loss_last": "last_z_loss",
    "weighted_total_last": "weighted total",
}
AUX, Z = "load_balance", "router_z"
SWITCHED_OFF = (
    "the run had no auxiliary losses of experts; `--set features.extra_aux_losses=on` adds them"
)


class MoeLayerLosses(Record):
    """Auxiliary losses of one E layer in the last step."""

    layer: int
    """0-based, in the whole pattern."""
    aux_loss_last: float | None
    """Load-balance loss before its weight, E · Σ f·P; 1 for an even load."""
    z_loss_last: float | None
    """Mean squared log-sum-exp of the router's logits, before its weight."""
    weighted_aux_loss_last: float | None
    weighted_z_loss_last: float | None
    weighted_aux_loss_mean: float | None
    """Mean over the steps of the run."""
    weighted_z_loss_mean: float | None


class MoeLossesView(View):
    """Fields of `--view moe-losses`."""

    view: Literal["moe-losses"] = "moe-losses"
    aux_loss_coefficient: float | None
    z_loss_coefficient: float | None
    layers: tuple[MoeLayerLosses, ...]
    weighted_aux_loss_last: float | None
    """Sum over layers, in the last step."""
    weighted_z_loss_last: float | None
    weighted_total_last: float | None


def moe_losses(source: Source) -> MoeLossesView:
    """Build the view."""
    receipt = source.receipt
    reasons = Reasons(receipt)
    moe = _table(_table(receipt.lane.spec, "model"), "moe")
    weights = {
        AUX: _number(moe.get("aux_loss_coefficient")),
        Z: _number(moe.get("z_loss_coefficient")),
    }
    totals = _table(receipt.extensions, LOSS_PARTS_KEY)
    of_layers = _table(receipt.extensions, LAYER_LOSSES_KEY)
    experts = layers_of(receipt, "E")
    why_none = "the lane has no E layers" if not experts else SWITCHED_OFF
    layers: tuple[MoeLayerLosses, ...] = ()
    if AUX in of_layers or Z in of_layers:
        layers = tuple(_layer(layer, of_layers, weights, reasons) for layer in experts)
    elif totals.keys() & {AUX, Z}:
        reasons.missing["layers"] = (
            f"a receipt of schema {receipt.schema_version} by lanewise {receipt.producer.version} holds sums over "
            "layers only"
        )
    else:
        reasons.missing["layers"] = why_none
    aux = _number(_table(totals, AUX).get("last"))
    z = _number(_table(totals, Z).get("last"))
    no_moe = "the lane's specification names no such coefficient"
    return MoeLossesView(
        receipt_id=receipt.receipt_id,
        lane=receipt.lane.canonical_name,
        aux_loss_coefficient=reasons.take("aux_loss_coefficient", weights[AUX], otherwise=no_moe),
        z_loss_coefficient=reasons.take("z_loss_coefficient", weights[Z], otherwise=no_moe),
        layers=layers,
        weighted_aux_loss_last=reasons.take(
            "weighted_aux_loss_last", aux, otherwise=_why(totals, AUX, why_none)
        ),
        weighted_z_loss_last=reasons.take(
            "weighted_z_loss_last", z, otherwise=_why(totals, Z, why_none)
        ),
        weighted_total_last=reasons.take(
            "weighted_total_last",
            None if aux is None or z is None else aux + z,
            otherwise=_why(totals, AUX, why_none),
        ),
        missing=reasons.missing,
    )


def _layer(
    layer: int, of_layers: dict[str, Any], weights: dict[str, float | None], reasons: Reasons
) -> MoeLayerLosses:
    values: dict[str, float | None] = {}
    for name, field in ((AUX, "aux_loss"), (Z, "z_loss")):
        entry = _table(_table(of_layers, name), str(layer))
        last, mean, weight = _number(entry.get("last")), _number(entry.get("mean")), weights[name]
        values[f"weighted_{field}_last"] = last
        values[f"weighted_{field}_mean"] = mean
        values[f"{field}_last"] = last / weight if last is not None and weight else None
        why = "not finite" if entry else "the layer had none"
        for key, value in (("last", last), ("mean", mean)):
            if value is None:
                reasons.missing[f"layers.{layer}.weighted_{field}_{key}"] = why
        if last is None:
            reasons.missing[f"layers.{layer}.{field}_last"] = why
        elif not weight:
            reasons.missing[f"layers.{layer}.{field}_last"] = (
                "its coefficient is 0 or unknown, and only the weighted loss is recorded"
            )
    return MoeLayerLosses(layer=layer, **values)


def _why(totals: dict[str, Any], name: str, otherwise: str) -> str:
    return "not finite" if name in totals else otherwise


def _table(parent: dict[str, Any], key: str) -> dict[str, Any]:
    found = parent.get(key)
    return found if isinstance(found, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
