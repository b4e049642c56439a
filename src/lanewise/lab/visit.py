"""One visit of a campaign: its request, its deadlines, and what its steps say about warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lanewise.lab import protocol
from lanewise.lab.arms import Arms
from lanewise.lab.caches import CompileCaches
from lanewise.lab.children import Child, Launcher, Stepped
from lanewise.lab.plan import ArmCost, CampaignPlan
from lanewise.lab.schedule import ArmName, block_seed
from lanewise.lane.resolve import with_seed
from lanewise.lane.resolved import ResolvedLane
from lanewise.measure.steady import detect_warmup
from lanewise.receipts.schema import Experiment, Warmup
from lanewise.train.request import RunRequest

SETUP_TAGS = frozenset({"compile", "autotune", "graph_capture", "reserve"})
"""Tags of steps that a steady state cannot contain."""

PATIENCE = 20.0
"""A visit may take this many times what its pilot took before it counts as hung."""

MIN_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTask:
    """One attempt at one block.

    Attributes:
        plan: the campaign's plan.
        arms: the two lanes.
        block: from 1.
        attempt: 1 or 2.
        quads: quads to run.
        store_root: where children write receipts.
        cores: processors of both arms; None leaves them where the system puts them.
        caches: private compile caches; None leaves the compilers' own.
    """

    plan: CampaignPlan
    arms: Arms
    block: int
    attempt: int
    quads: int
    store_root: str
    cores: tuple[int, ...] | None = None
    caches: CompileCaches | None = None

    @property
    def seed(self) -> int:
        """Seed of this attempt's order."""
        return block_seed(self.plan.order_seed, self.arms.feature, self.block, self.attempt)

    def _resolved(self, arm: ArmName) -> ResolvedLane:
        """Blocks of a feature that changes the mathematics differ in seed, both arms alike: its effect on the loss needs
        repetitions. Others repeat one seed, so that nothing but the machine varies."""
        resolved = self.arms.arm(arm)
        if self.arms.equal_mathematics:
            return resolved
        return with_seed(resolved, resolved.lane.seed + self.block - 1)

    def cost(self, arm: ArmName) -> ArmCost:
        """What the pilot says about an arm."""
        feature = self.plan.feature(self.arms.feature)
        cost = feature.control if arm == "A" else feature.treated
        assert cost is not None, "a planned feature has the cost of both arms"
        return cost

    def request(self, arm: ArmName, position: int) -> RunRequest:
        """The run of one visit; memory is profiled in the first block only, it does not vary between processes."""
        return RunRequest(
            resolved=self._resolved(arm),
            store_root=self.store_root,
            num_threads=self.plan.num_threads,
            data_path=self.plan.data_path,
            experiment=Experiment(
                campaign_id=self.plan.campaign_id,
                ablation_id=self.arms.feature,
                arm=arm,
                block=self.block,
                position=position,
                design=self.plan.block_design,
                order_seed=self.seed,
            ),
            protocol=protocol.parameters(
                self.plan.block_design,
                num_threads=self.plan.num_threads,
                pinned=self.plan.pinned,
                cache=self.plan.cache,
            ),
            # Two arms in one process have no peak of their own to profile.
            measure_memory=self.block == 1 and self.plan.block_design != "toggle",
            # A planted delay of 0 runs the very code of a base step.
            planted_delay_ratio=(self.arms.planted_ratio or None) if arm == "B" else None,
            cores=self.cores,
            compile_cache_dir=None
            if self.caches is None
            else self.caches.folder(self.arms.arm(arm)),
        )


class Visit:
    """A child of a block, with everything its steps have told so far."""

    def __init__(self, task: BlockTask, arm: ArmName, position: int, launcher: Launcher) -> None:
        """Start the process; `wait_ready` waits for it."""
        self.arm = arm
        self.durations: list[float] = []
        self.tagged: list[int] = []
        self._cost = task.cost(arm)
        self.child = Child(launcher(task.request(arm, position)), label=f"arm {arm}")

    def wait_ready(self) -> None:
        """Wait until the lane is built."""
        self.child.wait_ready(patience(self._cost.setup_seconds))

    def step(self, count: int = 1) -> Stepped:
        """Take steps; the first one may compile."""
        expected = self._cost.step_seconds * count
        if not self.durations:
            expected += self._cost.first_step_seconds
        stepped = self.child.step(count, patience(expected))
        for seconds, tags in zip(stepped.duration_seconds, stepped.tags, strict=True):
            if SETUP_TAGS & set(tags):
                self.tagged.append(len(self.durations))
            self.durations.append(seconds)
        return stepped

    def warmup(self, min_steady: int) -> Warmup:
        """Where this visit's warm-up ended."""
        return detect_warmup(self.durations, tagged=self.tagged, min_steady=min_steady)

    def finish_timeout_seconds(self) -> float:
        """How long closing the run may take: a profiled step and writing files."""
        return patience(self._cost.step_seconds * 10)


def patience(expected_seconds: float) -> float:
    """How long a child may take over something that should take so long."""
    return max(MIN_PATIENCE_SECONDS, PATIENCE * expected_seconds)


def longest_warmup(warmups: Sequence[Warmup]) -> Warmup:
    """The warm-up that all visits of a sequential block drop; that of one without a steady state, if there is one."""
    return max(warmups, key=lambda warmup: (not warmup.steady, warmup.steps))
