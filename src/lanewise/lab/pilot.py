"""One short visit of every configuration a campaign needs: what it costs, or why it cannot run.

A configuration shared by several features is visited once, the base twice: it is half of most blocks. No receipt is written, because nothing measured
here may carry a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lanewise.errors import ChildError, StoreError, UsageError
from lanewise.lab.arms import Arms, Question
from lanewise.lab.caches import CompileCaches, compiles
from lanewise.lab.children import Child, ChildRefused, Launcher
from lanewise.lab.plan import ArmCost, Candidate
from lanewise.lane.resolved import ResolvedLane
from lanewise.train.request import RunRequest

PILOT_STEPS = 3
"""Steps of a pilot visit; the first one is kept apart, it may be slow. The fastest of the others is the estimate: the
runner learns the real pace, and a pilot disturbed by a neighbour must not drop features."""

SHARE_OF_BUDGET = 0.5
"""The pilot may not use more of the budget than this."""

GPU_CONTEXT_BYTES = 2**30
"""What a process takes from a GPU besides tensors: the driver's context and the kernels of libraries."""

MIN_VISIT_SECONDS = 10.0
"""Even a small budget waits this long for one visit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PilotResult:
    """What the pilot found.

    Attributes:
        costs: config digest → cost, or why the configuration cannot be measured.
        seconds: what the pilot took.
    """

    costs: Mapping[str, ArmCost | str]
    seconds: float

    def candidate(self, question: Question) -> Candidate:
        """A feature with the cost of its arms."""
        arms = question.arms
        if question.refused is not None:
            return Candidate(
                feature=arms.feature, control=None, treated=None, failure=question.refused
            )
        found = [self.costs[arm.config_digest] for arm in (arms.control, arms.treated)]
        failure = next((cost for cost in found if isinstance(cost, str)), None)
        control, treated = (cost if isinstance(cost, ArmCost) else None for cost in found)
        return Candidate(feature=arms.feature, control=control, treated=treated, failure=failure)

    def largest_resident_pair(self, arms: Sequence[Arms]) -> int | None:
        """Memory of the two heaviest arms that run side by side, or None when it is not known."""
        pairs = []
        for pair in arms:
            costs = [self.costs.get(arm.config_digest) for arm in (pair.control, pair.treated)]
            sizes = [cost.resident_bytes for cost in costs if isinstance(cost, ArmCost)]
            pairs.append(sum(size for size in sizes if size is not None))
        return max(pairs, default=0) or None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pilot:
    """Visits configurations one after another.

    Attributes:
        launcher: starts processes.
        clock: seconds.
        store_root: put into the request; nothing is written there.
        num_threads: threads of a child.
        data_path: replaces the lane's data.
        budget_seconds: of the whole campaign.
        on_visit: told what each visit found.
        cores: processors of a child; None leaves it where the system puts it.
        caches: compile caches that visits fill; None leaves the compilers' own.
    """

    launcher: Launcher
    clock: Callable[[], float]
    store_root: str
    num_threads: int
    data_path: str | None
    budget_seconds: float
    on_visit: Callable[[str, ArmCost | str], None]
    cores: tuple[int, ...] | None = None
    caches: CompileCaches | None = None

    def run(self, base: ResolvedLane, asked: Sequence[Question]) -> PilotResult:
        """Visit the base, then every other arm, plain ones before those that compile.

        Raises:
            UsageError: the base cannot run for a reason the user can mend, or the budget is too small for the pilot.
            ChildError: the base died.
        """
        started = self.clock()
        costs: dict[str, ArmCost | str] = {base.config_digest: self._base_cost(base, started)}
        self.on_visit("base", costs[base.config_digest])
        for name, resolved in _by_setup_cost(asked):
            if resolved.config_digest not in costs:
                costs[resolved.config_digest] = self._cost(name, resolved, started, len(asked))
                self.on_visit(name, costs[resolved.config_digest])
        return PilotResult(costs=costs, seconds=self.clock() - started)

    def _base_cost(self, base: ResolvedLane, started: float) -> ArmCost:
        limit = max(self.budget_seconds, MIN_VISIT_SECONDS)
        try:
            cost = self._warm_visit("base", base, limit)
        except ChildRefused as error:
            raise _as_own_error(error) from error
        except _OutOfTime as error:
            raise UsageError(
                f"the base of lane {base.lane.name!r} did not finish {PILOT_STEPS} steps within {limit:.0f} s, so the "
                f"budget of {self.budget_seconds:.0f} s is too small for one block; give a larger --budget"
            ) from error
        if self.clock() - started >= self.budget_seconds:
            raise UsageError(
                f"a single visit of {PILOT_STEPS} steps took {self.clock() - started:.0f} s, so the budget of "
                f"{self.budget_seconds:.0f} s is too small for one block; give a larger --budget"
            )
        return cost

    def _cost(
        self, name: str, resolved: ResolvedLane, started: float, num_features: int
    ) -> ArmCost | str:
        left = SHARE_OF_BUDGET * self.budget_seconds - (self.clock() - started)
        limit = min(left, max(0.15, SHARE_OF_BUDGET / num_features) * self.budget_seconds)
        if left <= 0:
            return "over budget: the pilot used its half of the budget before this feature's turn"
        try:
            visit = self._warm_visit if compiles(resolved) else self._visit
            return visit(name, resolved, max(limit, MIN_VISIT_SECONDS))
        except ChildRefused as error:
            return error.reason
        except _OutOfTime:
            return f"over budget: one visit takes more than {limit:.0f} s"
        except ChildError as error:
            return str(error)

    def _warm_visit(self, name: str, resolved: ResolvedLane, limit_seconds: float) -> ArmCost:
        """Two visits: the first may fill a cache (prepared data, compiled code) that every block will find warm."""
        first, second = (self._visit(name, resolved, limit_seconds) for _ in range(2))
        if self.caches is not None:
            self.caches.filled(resolved)
        return ArmCost(
            setup_seconds=min(first.setup_seconds, second.setup_seconds),
            first_step_seconds=min(first.first_step_seconds, second.first_step_seconds),
            step_seconds=min(first.step_seconds, second.step_seconds),
            resident_bytes=second.resident_bytes,
        )

    def _visit(self, name: str, resolved: ResolvedLane, limit_seconds: float) -> ArmCost:
        deadline = self.clock() + limit_seconds
        endpoint = self.launcher(self._request(resolved))
        child = Child(endpoint, label=f"pilot of {name}")
        durations: list[float] = []
        try:
            setup = child.wait_ready(self._left(deadline))
            for _ in range(PILOT_STEPS):
                stepped = child.step(1, self._left(deadline))
                durations += stepped.duration_seconds
            return ArmCost(
                setup_seconds=setup,
                first_step_seconds=durations[0],
                step_seconds=min(durations[1:]),
                # Two copies must fit where the tensors are: on the GPU, or in the host's memory.
                resident_bytes=child.resident_bytes()
                if stepped.device_bytes is None
                else stepped.device_bytes + GPU_CONTEXT_BYTES,
            )
        except ChildError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise _OutOfTime from error
            raise
        finally:
            child.abort()

    def _request(self, resolved: ResolvedLane) -> RunRequest:
        return RunRequest(
            resolved=resolved,
            store_root=self.store_root,
            num_threads=self.num_threads,
            data_path=self.data_path,
            measure_memory=False,
            cores=self.cores,
            compile_cache_dir=None if self.caches is None else self.caches.folder(resolved),
        )

    def _left(self, deadline: float) -> float:
        return max(0.0, deadline - self.clock())


def fill_cache(request: RunRequest, launcher: Launcher, timeout_seconds: float) -> None:
    """Two visits of one step, of which nothing is read: a cache is filled, then completed by what its first use writes.

    Raises:
        ChildError: a visit failed.
    """
    for _ in range(2):
        child = Child(launcher(request), label="filling the compile cache")
        try:
            child.wait_ready(timeout_seconds)
            child.step(1, timeout_seconds)
        finally:
            child.abort()


class _OutOfTime(Exception):  # a limit of the plan, not an error of the program
    """A visit reached its time limit."""


def _by_setup_cost(asked: Sequence[Question]) -> list[tuple[str, ResolvedLane]]:
    """(name, configuration) of every arm; those that switch the runtime (compile) last, they may use up the time."""
    named = [
        (f"{question.arms.feature}={question.arms.states[arm]}", question.arms.arm(arm))
        for question in asked
        if question.refused is None
        for arm in ("A", "B")
    ]
    return sorted(named, key=lambda pair: any(pair[1].runtime_switches.values()))


def _as_own_error(error: ChildRefused) -> Exception:
    if error.child_exit_code == UsageError.exit_code:
        return UsageError(error.reason)
    if error.child_exit_code == StoreError.exit_code:
        return StoreError(error.reason)
    return ChildError(f"the base cannot run: {error.reason}")
