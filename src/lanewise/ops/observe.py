"""Which backend really ran: launch counters, and the one callable that moves them.

In eager execution every call of a backend moves its counter (proof `counter`). Inside `torch.compile` the Python body
runs only while it is traced, so the count is taken then and the proof is `trace`: the compiled code contains that
backend. The counting function is a constant to Dynamo, which therefore neither breaks the graph nor guards on the
number (a guarded integer would recompile at every step).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lanewise.ops.spec import Choice

Proof = Literal["counter", "trace", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What was seen of one op since the last reset.

    Attributes:
        op: op name.
        backends: backends that were launched or traced, sorted by name; empty when the op never ran.
        launches: eager launches plus traces.
        proof: `counter` when everything was counted in eager, `trace` when any of it is known from a trace only.
    """

    op: str
    backends: tuple[str, ...]
    launches: int
    proof: Proof


class LaunchCounters:
    """Op × backend → number of launches, one object per `OpSet`.

    Attributes:
        launches: finished eager launches, counted up by every `Launch`.
    """

    def __init__(self) -> None:
        self.launches: Counter[tuple[str, str]] = Counter()
        self._traces: Counter[tuple[str, str]] = Counter()

    def count_trace(self, op: str, backend: str) -> None:
        """Note that the backend was traced into a compiled graph."""
        self._traces[op, backend] += 1

    def reset(self) -> None:
        """Forget the launches. Traces stay: the compiled code they describe goes on running without being traced."""
        self.launches.clear()

    def observation(self, op: str) -> Observation:
        """What ran of this op."""
        launches = {backend: n for (name, backend), n in self.launches.items() if name == op}
        traces = {backend: n for (name, backend), n in self._traces.items() if name == op}
        proof: Proof = "trace" if traces else "counter" if launches else "none"
        return Observation(
            op=op,
            backends=tuple(sorted(launches.keys() | traces.keys())),
            launches=sum(launches.values()) + sum(traces.values()),
            proof=proof,
        )


class Launch:
    """The chosen backend of one op, bound to its counter: calling it runs the backend and counts the launch.

    A call that raises is not counted. An op whose work happens later than its call (`optimizer_step` builds an
    optimizer) calls `function` itself and `count` when the work is done.

    Attributes:
        choice: how the backend was chosen.
        function: the imported backend.
        count: notes one launch, or one trace while compiling.
    """

    def __init__(
        self, choice: Choice, function: Callable[..., Any], counters: LaunchCounters
    ) -> None:
        self.choice = choice
        self.function = function
        op, backend = choice.op, choice.chosen

        def trace() -> bool:
            counters.count_trace(op, backend)
            return True

        traced = torch.compiler.assume_constant_result(trace)  # type: ignore[no-untyped-call]

        # Every op call of every step ends here, so the path is short: names bound once, no method in between.
        is_compiling, launches, key = torch.compiler.is_compiling, counters.launches, (op, backend)

        def count() -> None:
            if is_compiling():
                traced()
            else:
                launches[key] += 1

        self.count = count

    def __call__(self, *args: Any) -> Any:
        """Run the backend with the op's own arguments, in order, and count it."""
        result = self.function(*args)
        self.count()
        return result
