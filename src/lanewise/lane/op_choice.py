"""What a model leaves to choose about its ops: which of several alternatives it runs, and whether backends differ at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from lanewise.lane.pattern import layer_letters
from lanewise.lane.schema import ModelSpec

ALTERNATIVE_OPS: Mapping[str, Callable[[ModelSpec], bool]] = MappingProxyType(
    {
        "ssm_scan": lambda model: _mamba3_rank(model) == 1,
        "mimo_scan": lambda model: _mamba3_rank(model) > 1,
        "ssd_scan": lambda model: _is_mamba2(model),
    }
)
"""Ops of which a block runs one or another, by its table, and the models that run each."""


def _is_mamba2(model: ModelSpec) -> bool:
    return model.mamba is not None and model.mamba.version == "mamba2"


def _mamba3_rank(model: ModelSpec) -> int:
    """0 without Mamba-3."""
    mamba = model.mamba
    return mamba.mimo_rank if mamba is not None and mamba.version == "mamba3" else 0


def runs_op(op: str, model: ModelSpec) -> bool:
    """Whether a model that has the blocks of an op runs it, rather than an alternative of it."""
    return op not in ALTERNATIVE_OPS or ALTERNATIVE_OPS[op](model)


def attention_has_one_backend(model: ModelSpec, device_type: str) -> str | None:
    """Why `attention_core` runs `sdpa.torch` whatever is asked for, or None; the op's table in lane terms.

    On a GPU what the dispatcher may take instead is `padded.torch`, which needs unequal head dims at every call site: the
    expanded form by its dims, the absorbed one always, grouped queries never.
    """
    letters, mla = layer_letters(model), model.attention
    unequal = mla is not None and (
        mla.form == "absorbed" or mla.qk_nope_head_dim + mla.qk_rope_head_dim != mla.v_head_dim
    )
    if device_type == "cpu" or (unequal and "A" in letters and "G" not in letters):
        return None
    return (
        f"on {device_type} both states run sdpa.torch: blocked.torch is written for a CPU, and padded.torch needs head "
        "dims of q and v that differ"
    )
