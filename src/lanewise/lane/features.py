"""Features as data: what each one is, what each of its states sets, and what it is compared with.

Adding a feature touches this file and the op or block it concerns, nothing else. `off` is what a competent user
installs on that device today; where it is a slow reference instead, `control_note` says so in so many words.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType

from lanewise.lane.index_layers import attends_densely
from lanewise.lane.op_choice import attention_has_one_backend, runs_op
from lanewise.lane.pattern import layer_letters
from lanewise.lane.schema import ModelSpec
from lanewise.lane.tax_rules import (
    depth_routing_misfit,
    engram_misfit,
    metadata_embeddings_misfit,
)


class Role(enum.StrEnum):
    """What a feature is for, which decides how it is judged."""

    HOT_PATH = "hot_path"
    """Removes repeated work from every step; may become a default on evidence."""
    BRIDGE = "bridge"
    """Routes work to a better maintained path."""
    SELECTIVE = "selective"
    """A broad fusion that must keep proving itself against a narrow one."""
    TAX = "tax"
    """Costs step time for quality, judged against a budget; opt-in, by its state or by a table of the lane."""


Preference = tuple[str, ...]
"""Backends of an op in the order to try; one name alone must run or the run fails; empty is the op's own order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What one state of a feature sets.

    Attributes:
        ops: op → backends to try, by device type (`cpu`, `cuda`).
        model: switches read when the model is assembled, e.g. `{"extra_aux_losses": True}`.
        runtime: switches read when the run is built, e.g. `{"regional_compile": True}`.
    """

    ops: Mapping[str, Mapping[str, Preference]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    model: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    runtime: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """One switchable feature.

    Attributes:
        key: name in `[features]`.
        title: words for tables.
        role: how it is judged.
        family: key of the article's family, or None for features beyond the article.
        letters: pattern letters it touches; empty touches every lane.
        settings: state → what it sets; `off` is the control.
        control_name: the control in a table where `off` sets no backend, e.g. `eager`.
        control_note: why the control is honest, or that it is the slow reference and why.
        default_state: state when neither the user nor the ledger speaks (the stance).
        stance: the stance in words, for tables.
        tax_budget_ratio: largest acceptable step-time ratio of a tax, e.g. 1.01; None for others.
        equal_mathematics: whether both states promise the same loss up to rounding.
        built: whether this version implements it.
        needs_dense_attention: whether it changes nothing on a model whose A layers are all sparse.
        needs_values: settings of `[model]` without which nothing runs that this feature switches, by dotted path.
        table: optional table of `[model]` a lane must have for this feature to exist, e.g. `mtp`; None for any lane.
        screened: whether `ablate` takes it up without being asked for it by name.
        misfit: why the sizes of a model do not allow it, or None.
        narrow: feature that a broad fusion must beat: its control has that one on.
        control_notes: device type → what replaces `control_note` there.
        no_choice: why both states run the same code for a model on a device type, so that there is nothing to measure, or None.
    """

    key: str
    title: str
    role: Role
    family: str | None
    letters: frozenset[str]
    settings: Mapping[str, Setting]
    control_note: str
    default_state: str
    stance: str
    tax_budget_ratio: float | None = None
    equal_mathematics: bool = True
    built: bool = True
    control_name: str = "off"
    table: str | None = None
    needs_values: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    needs_dense_attention: bool = False
    screened: bool = True
    misfit: Callable[[ModelSpec], str | None] = lambda _: None
    narrow: str | None = None
    control_notes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    no_choice: Callable[[ModelSpec, str], str | None] = lambda _model, _device_type: None

    def note_on(self, device_type: str) -> str:
        """Why the control is honest on this device."""
        return self.control_notes.get(device_type, self.control_note)

    def ops_for(self, model: ModelSpec) -> tuple[str, ...]:
        """Ops that any state sets and this model runs, sorted."""
        ops = {op for setting in self.settings.values() for op in setting.ops}
        return tuple(sorted(op for op in ops if runs_op(op, model)))

    @property
    def states(self) -> tuple[str, ...]:
        """States in declaration order; `off` first."""
        return tuple(self.settings)

    def applies_to(self, model: ModelSpec) -> bool:
        """Whether a model has anything for this feature to change."""
        return self.why_not(model) is None

    def why_not(self, model: ModelSpec) -> str | None:
        """Why a model has nothing for this feature to change, or None."""
        if self.table is not None and getattr(model, self.table) is None:
            return f"it needs the table [model.{self.table}], which the lane does not have"
        if self.letters and not self.letters & frozenset(layer_letters(model)):
            blocks = " or ".join(sorted(self.letters))
            return f"it touches {blocks} blocks and the pattern {model.pattern} has none"
        for path, needed in self.needs_values.items():
            value = reduce(getattr, path.split("."), model)
            if value != needed:
                return f"it needs model.{path} = {needed} and the lane has {value}"
        touched = self.letters & frozenset(layer_letters(model))
        if self.needs_dense_attention and touched == {"A"} and not attends_densely(model):
            return "it touches dense attention and every A layer of the lane is sparse"
        return self.misfit(model)


def _everywhere(*preference: str) -> dict[str, Preference]:
    """The same backends on a CPU and on a GPU: torch code that runs on either."""
    return {"cpu": preference, "cuda": preference}


def _op_switch(
    *ops: str, off: Mapping[str, Preference], on: Mapping[str, Preference]
) -> dict[str, Setting]:
    return {
        "off": Setting(ops=dict.fromkeys(ops, off)),
        "on": Setting(ops=dict.fromkeys(ops, on)),
    }


def _tax(
    key: str,
    title: str,
    *,
    control_note: str,
    letters: str = "",
    table: str | None = None,
    built: bool = False,
    misfit: Callable[[ModelSpec], str | None] = lambda _: None,
    default_state: str = "off",
    stance: str = "experimental, opt-in",
    budget_ratio: float = 1.01,
) -> Feature:
    """A feature that costs time for quality, by a model switch of its own name; opt-in unless its table is the opting in."""
    return Feature(
        key=key,
        title=title,
        role=Role.TAX,
        family="stp",
        letters=frozenset(letters),
        settings={"off": Setting(), "on": Setting(model={key: True})},
        control_note=control_note,
        default_state=default_state,
        stance=stance,
        tax_budget_ratio=budget_ratio,
        equal_mathematics=False,
        built=built,
        table=table,
        screened=False,
        misfit=misfit,
    )


FEATURES: tuple[Feature, ...] = (
    Feature(
        key="fused_mamba",
        title="fused Mamba",
        role=Role.HOT_PATH,
        family="fused_mamba",
        letters=frozenset("M"),
        settings=_op_switch(
            "ssm_scan",
            "mimo_scan",
            "ssd_scan",
            off=_everywhere("recurrence.torch"),
            on=_everywhere("chunked.torch"),
        ),
        control_note="the step recurrence: no installable Mamba package runs on a CPU",
        control_notes={
            "cuda": "the step recurrence, a slow reference: the Triton kernels of mamba-ssm have no adapter here yet"
        },
        default_state="on",
        stance="default on",
    ),
    Feature(
        key="fused_recurrent",
        title="fused M2RNN",
        role=Role.HOT_PATH,
        family=None,
        letters=frozenset("R"),
        settings=_op_switch(
            "m2rnn_scan", off=_everywhere("loop.torch"), on=_everywhere("fused.torch")
        ),
        control_note="the autograd loop: no installable M2RNN package runs on a CPU",
        control_notes={
            "cuda": "the autograd loop, a slow reference: the public Triton kernels have no adapter here yet"
        },
        default_state="on",
        stance="default on",
    ),
    Feature(
        key="fused_residual",
        title="fused residual + norm",
        role=Role.HOT_PATH,
        family="fused_residual",
        letters=frozenset(),
        settings=_op_switch(
            "add_norm", off=_everywhere("composed.torch"), on=_everywhere("fused.torch")
        ),
        control_note="x + residual, then torch's own rms_norm",
        default_state="on",
        stance="default on",
    ),
    Feature(
        key="fused_mla_ingress",
        title="narrow MLA ingress",
        role=Role.HOT_PATH,
        family="fused_mla_ingress",
        letters=frozenset("A"),
        needs_dense_attention=True,
        settings=_op_switch(
            "mla_ingress", off=_everywhere("reshaped.torch"), on=_everywhere("assembled.torch")
        ),
        needs_values={"attention.form": "expanded"},
        control_note="split, rotate, expand, concatenate: what public MLA modules do",
        default_state="on",
        stance="on once validated",
    ),
    Feature(
        key="fused_mla_projection",
        title="broad MLA projection",
        role=Role.SELECTIVE,
        family="fused_mla_projection",
        letters=frozenset("A"),
        needs_dense_attention=True,
        settings={"off": Setting(), "on": Setting()},
        control_note="the narrow ingress (narrow before broad)",
        narrow="fused_mla_ingress",
        default_state="off",
        stance="selective",
        built=False,
    ),
    Feature(
        key="fused_moe",
        title="fused MoE",
        role=Role.HOT_PATH,
        family="fused_moe",
        letters=frozenset("E"),
        settings=_op_switch(
            "moe_experts", off=_everywhere("padded.torch"), on=_everywhere("sorted.torch")
        ),
        control_note="the article's standard path: permute, pad, batched GEMM, unpad, unpermute",
        default_state="on",
        stance="core",
    ),
    Feature(
        key="fused_linear_ce",
        title="fused linear cross-entropy",
        role=Role.HOT_PATH,
        family=None,
        letters=frozenset(),
        settings=_op_switch(
            "linear_cross_entropy", off=_everywhere("plain.torch"), on=_everywhere("chunked.torch")
        ),
        control_note="full logits, then torch's cross_entropy",
        default_state="on",
        stance="default on",
    ),
    Feature(
        key="fused_optimizer",
        title="fused optimizer",
        role=Role.HOT_PATH,
        family=None,
        letters=frozenset(),
        settings=_op_switch(
            "optimizer_step",
            off={"cpu": ("per_tensor.torch",), "cuda": ("foreach.torch",)},
            on=_everywhere("fused.torch"),
        ),
        control_note="torch.optim.AdamW's own CPU default, one tensor at a time; Muon one matrix at a time",
        control_notes={
            "cuda": "torch.optim.AdamW's own CUDA default, lists of tensors; Muon as in fused.torch"
        },
        default_state="on",
        stance="default on",
    ),
    Feature(
        key="backend_dispatch",
        title="backend dispatcher",
        role=Role.BRIDGE,
        family="backend_dispatch",
        letters=frozenset("AG"),
        needs_dense_attention=True,
        settings=_op_switch("attention_core", off=_everywhere("sdpa.torch"), on=_everywhere()),
        control_note="scaled_dot_product_attention called as it is; on = the dispatcher's measured order",
        control_notes={
            "cuda": "scaled_dot_product_attention called as it is; on = the dispatcher's order, not measured on a GPU"
        },
        no_choice=attention_has_one_backend,
        default_state="on",
        stance="centralised",
    ),
    Feature(
        key="regional_compile",
        title="regional compile",
        role=Role.BRIDGE,
        family=None,
        letters=frozenset(),
        settings={"off": Setting(), "on": Setting(runtime={"regional_compile": True})},
        control_name="eager",
        control_note="eager execution of the same blocks",
        default_state="off",
        stance="opt-in on CPU",
    ),
    Feature(
        key="extra_aux_losses",
        title="extra auxiliary losses",
        role=Role.TAX,
        family="stp",
        letters=frozenset("E"),
        settings={"off": Setting(), "on": Setting(model={"extra_aux_losses": True})},
        control_note="bias-balanced routing without auxiliary losses",
        default_state="off",
        stance="experimental, opt-in",
        tax_budget_ratio=1.01,
        equal_mathematics=False,
    ),
    _tax("stp", "STP (trajectory straightness)", control_note="no auxiliary loss", built=True),
    _tax(
        "mtp",
        "multi-token prediction",
        control_note="the same trunk without the MTP blocks and their heads",
        table="mtp",
        built=True,
        default_state="on",
        stance="part of a lane that has the table",
        budget_ratio=1.2,  # one depth of nam56r costs the public system 18 % (docs/NAM56R.md 1.3)
    ),
    _tax(
        "metadata_embeddings",
        "metadata embeddings",
        control_note="token embeddings alone",
        built=True,
        misfit=metadata_embeddings_misfit,
    ),
    _tax(
        "engram",
        "engram branch",
        control_note="attention without the branch",
        letters="AG",
        built=True,
        misfit=engram_misfit,
    ),
    _tax(
        "hyper_connections",
        "hyper-connections (mHC)",
        control_note="one residual stream",
        built=True,
    ),
    _tax(
        "depth_routing",
        "depth routing (MoD)",
        control_note="every token passes every block",
        letters="ED",
        built=True,
        misfit=depth_routing_misfit,
    ),
)

BY_KEY: Mapping[str, Feature] = MappingProxyType({feature.key: feature for feature in FEATURES})
