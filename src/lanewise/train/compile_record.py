"""What a receipt says about compilation."""

from __future__ import annotations

from lanewise.parallel import compile_regions
from lanewise.receipts.schema import CompileRecord


def compile_record(
    *, enabled: bool, seconds: float, cache_digest: str | None, missing: dict[str, str]
) -> CompileRecord:
    """Torch's own counters of this process, or that nothing was compiled.

    Args:
        enabled: whether blocks are compiled.
        seconds: what triggering compilation took.
        cache_digest: of the private cache before it; None without one.
        missing: reasons by dotted path; gets those of this record.
    """
    if not enabled or cache_digest is None:
        missing["compile.cache_digest"] = (
            "no private cache was asked for" if enabled else "nothing is compiled"
        )
    if not enabled:
        return CompileRecord(
            enabled=False,
            cache_state="unused",
            compile_duration_seconds=0.0,
            graph_breaks=0,
            recompiles=0,
            graph_captures=0,
        )
    counts = compile_regions.compile_counts()
    return CompileRecord(
        enabled=True,
        cache_state=counts.cache_state,
        compile_duration_seconds=seconds,
        graph_breaks=counts.graph_breaks,
        recompiles=counts.recompiles,
        graph_captures=0,
        cache_digest=cache_digest,
    )
