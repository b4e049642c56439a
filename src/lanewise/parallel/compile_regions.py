"""Regional compile: every block is compiled in place, from outside, as one full graph per block class.

Embedding, residual stream, head and optimizer stay eager. `module.compile()` keeps module identity and parameter
names, so checkpoints and the optimizer are the same with and without it. Torch's compiler is imported only when it is
used, because that import alone takes seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lanewise.errors import BackendError
from lanewise.ops.spec import Capabilities

NO_COMPILER = "no C++ compiler"
"""The reason a campaign prints: `not measured: no C++ compiler`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileCounts:
    """What torch.compile has done in this process.

    Attributes:
        graphs: graphs compiled.
        graph_breaks: places where a graph was cut; 0 under `fullgraph`.
        recompiles: compilations of code that had been compiled before, with the guards that failed.
        cache_state: `cold` when every graph was built, `warm` when every graph came from the cache.
    """

    graphs: int
    graph_breaks: int
    recompiles: int
    cache_state: Literal["cold", "warm", "mixed", "unused"]


def compile_blocks(blocks: Iterable[nn.Module], capabilities: Capabilities) -> None:
    """Arrange that each block compiles at its first call, as one graph or not at all.

    Raises:
        BackendError: the device is a CPU and nothing here compiles C++.
    """
    if capabilities.device_type == "cpu" and not capabilities.has_cxx_compiler:
        raise BackendError(
            f"regional_compile was asked for and cannot run: {NO_COMPILER}. "
            "Install g++ or set CXX, or switch the feature off: --set features.regional_compile=off."
        )
    # Inductor's first import decorates a class with an old torch.jit API; that is torch's own affair.
    warnings.filterwarnings(
        "ignore", message=r"`torch\.jit\.script_method` is deprecated", category=DeprecationWarning
    )
    for block in blocks:
        block.compile(fullgraph=True)


def compile_counts() -> CompileCounts:
    """Read torch's own counters of this process."""
    from torch._dynamo import utils as dynamo_utils

    counters = dynamo_utils.counters
    hits = counters["inductor"].get("fxgraph_cache_hit", 0)
    misses = counters["inductor"].get("fxgraph_cache_miss", 0)
    return CompileCounts(
        graphs=graphs_compiled(),
        graph_breaks=sum(counters["graph_break"].values()),
        recompiles=sum(
            metric.recompile_reason is not None for metric in dynamo_utils.get_compilation_metrics()
        ),
        cache_state=_cache_state(hits, misses),
    )


def graphs_compiled() -> int:
    """Graphs compiled so far in this process; cheap enough to read at every step."""
    from torch._dynamo import utils as dynamo_utils

    return int(dynamo_utils.counters["stats"].get("unique_graphs", 0))


def _cache_state(hits: int, misses: int) -> Literal["cold", "warm", "mixed", "unused"]:
    if hits and misses:
        return "mixed"
    return "warm" if hits else "cold" if misses else "unused"
