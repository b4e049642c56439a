"""Every view by the name the command line uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lanewise.receipts.views import (
    attention_backend,
    compile_runtime,
    expert_routing,
    failure,
    goodput,
    gpu_profile,
    moe_losses,
    optimization,
    utilization,
)
from lanewise.receipts.views.base import ArticleNames, Source, View


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewEntry:
    """One view.

    Attributes:
        model: its record.
        build: makes it.
        names: its fields that the article's receipts have under another name.
        takes_base: whether it compares with a base receipt.
    """

    model: type[View]
    build: Callable[[Source], View]
    names: ArticleNames
    takes_base: bool = False


VIEWS: Mapping[str, ViewEntry] = MappingProxyType(
    {
        "optimization": ViewEntry(
            model=optimization.OptimizationView,
            build=optimization.optimization,
            names=optimization.NAMES,
            takes_base=True,
        ),
        "gpu-profile": ViewEntry(
            model=gpu_profile.GpuProfileView,
            build=gpu_profile.gpu_profile,
            names=gpu_profile.NAMES,
            takes_base=True,
        ),
        "compile-runtime": ViewEntry(
            model=compile_runtime.CompileRuntimeView,
            build=compile_runtime.compile_runtime,
            names=compile_runtime.NAMES,
        ),
        "attention-backend": ViewEntry(
            model=attention_backend.AttentionBackendView,
            build=attention_backend.attention_backend,
            names=attention_backend.NAMES,
        ),
        "moe-losses": ViewEntry(
            model=moe_losses.MoeLossesView,
            build=moe_losses.moe_losses,
            names=moe_losses.NAMES,
        ),
        "expert-routing": ViewEntry(
            model=expert_routing.ExpertRoutingView,
            build=expert_routing.expert_routing,
            names=expert_routing.NAMES,
        ),
        "goodput": ViewEntry(model=goodput.GoodputView, build=goodput.goodput, names=goodput.NAMES),
        "utilization": ViewEntry(
            model=utilization.UtilizationView,
            build=utilization.utilization,
            names=utilization.NAMES,
        ),
        "failure": ViewEntry(model=failure.FailureView, build=failure.failure, names=failure.NAMES),
    }
)
