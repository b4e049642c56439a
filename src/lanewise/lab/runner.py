"""Runs a planned campaign block by block, keeps the budget, and writes its documents however it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lanewise.errors import ChildError, StoreError
from lanewise.lab.analyse import analyse_campaign, arm_builder, campaign_record
from lanewise.lab.arms import Arms
from lanewise.lab.caches import CompileCaches
from lanewise.lab.campaign import MAX_ATTEMPTS, CampaignFolder
from lanewise.lab.children import ChildRefused, Launcher, VisitFailed
from lanewise.lab.events import (
    AttemptsUsedUp,
    BlockAdvanced,
    BlockDiscarded,
    BlockFinished,
    BlockStarted,
    CampaignResult,
    FeatureStopped,
    Listener,
    OutOfBudget,
    PlanReady,
)
from lanewise.lab.evidence import BlockEvidence, read_blocks
from lanewise.lab.gates.gate import ARM_NAMES
from lanewise.lab.journal import BlockDone, BlockLost, Stopped
from lanewise.lab.judge import JudgedBlock, judge
from lanewise.lab.lockstep import run_lockstep
from lanewise.lab.pace import Pace
from lanewise.lab.pilot import fill_cache
from lanewise.lab.plan import CampaignPlan
from lanewise.lab.schedule import block_order
from lanewise.lab.sequential import run_sequential
from lanewise.lab.stopping import confidence, contrasts, looks_at
from lanewise.lab.toggle import run_toggle
from lanewise.lab.validity import worth_another_attempt
from lanewise.lab.visit import BlockTask
from lanewise.measure.host import Host
from lanewise.measure.stats import estimate_from_contrasts
from lanewise.receipts.failures import DefectFailure
from lanewise.receipts.store import Store

RESUME_RATIO = 1.5
"""Time left to a resumed campaign, at least, over the planned time of its missing blocks."""

RUN_BLOCK = {"lockstep": run_lockstep, "sequential": run_sequential, "toggle": run_toggle}

CACHE_PATIENCE_SECONDS = 1800.0
"""How long filling one compile cache may take."""


@dataclass(kw_only=True)
class Runner:
    """One campaign being run.

    Attributes:
        store: takes receipts and documents.
        folder: the campaign's folder; its lock is held by the caller.
        launcher: starts processes.
        clock: seconds, never going back.
        now: RFC 3339 time, for documents.
        listen: told what happens.
        spent_seconds: what earlier sittings and the pilot have used of the budget.
        host: watched over every block; None watches nothing.
        cores: processors of training processes; None leaves them where the system puts them.
        retry_crashed: forget attempts of earlier sittings, so that blocks which used theirs up get new ones.

    `_evidence` holds blocks as read back from the disk, in the order they were run.
    """

    store: Store
    folder: CampaignFolder
    launcher: Launcher
    clock: Callable[[], float]
    now: Callable[[], str]
    listen: Listener
    spent_seconds: float
    host: Host | None = None
    cores: tuple[int, ...] | None = None
    retry_crashed: bool = False
    _forgotten: int = 0
    _evidence: dict[tuple[str, int], BlockEvidence] = field(default_factory=dict)

    def run(self) -> CampaignResult:
        """Run the missing blocks, then decide. Ctrl-C keeps finished blocks and decides on them.

        Raises:
            StoreError: the disk refuses a document; the journal is intact and the campaign can be resumed.
        """
        plan = self.folder.plan()
        finished = self.folder.finished()
        for block in read_blocks(self.store, tuple(finished.values())):
            self._evidence[block.entry.feature, block.entry.block] = block
        running = campaign_record(plan, status="RUNNING")
        self.store.write_campaign(running)
        self.listen(PlanReady(campaign=running, finished_blocks=len(finished)))
        interrupted = False
        try:
            self._run_missing(plan)
        except KeyboardInterrupt:
            interrupted = True
        return self._decide(interrupted=interrupted)

    def _run_missing(self, plan: CampaignPlan) -> None:
        builder = arm_builder(plan)
        arms = {key: builder.build(key) for key in plan.blocks}
        # A kill may have come between a block and the look it reached, so all looks are taken again.
        stopped = {key for key in arms if self._stops(plan, arms[key])}
        queue = [
            (feature, block)
            for feature, block in block_order(plan.order_seed, plan.blocks)
            if (feature, block) not in self._evidence and feature not in stopped
        ]
        self._forgotten = len(self.folder.lost()) if self.retry_crashed else 0
        self._tell_used_up(queue)
        pace = Pace(plan, started=self.clock(), spent_seconds=self.spent_seconds)
        while queue:
            feature, block = queue[0]
            if (feature, block) in self._used_up():
                queue.pop(0)
                continue
            quads = pace.quads([plan.feature(key) for key, _block in queue], self.clock())
            if quads is None:
                self.listen(OutOfBudget(missing_blocks=len(queue)))
                return
            queue.pop(0)
            entry = self._attempt(plan, arms[feature], block, quads)
            self.folder.journal.append(entry)
            pace.record(plan.feature(feature), quads, entry.wall_seconds)
            if isinstance(entry, BlockDone):
                self._finished(plan, arms[feature], entry)
                if self._stops(plan, arms[feature]):
                    queue = [place for place in queue if place[0] != feature]
            else:
                again = self._attempts(feature, block) < MAX_ATTEMPTS
                if again:
                    queue.append((feature, block))
                self.listen(
                    BlockDiscarded(
                        feature=feature,
                        block=block,
                        num_blocks=plan.blocks[feature],
                        reason=entry.reason,
                        again=again,
                    )
                )

    def _attempt(
        self, plan: CampaignPlan, arms: Arms, block: int, quads: int
    ) -> BlockDone | BlockLost:
        earlier = [e for e in self.folder.lost() if (e.feature, e.block) == (arms.feature, block)]
        task = BlockTask(
            plan=plan,
            arms=arms,
            block=block,
            attempt=len(earlier) + 1,
            quads=quads,
            store_root=self.store.root,
            cores=self.cores,
            caches=self._caches(plan),
        )
        self.listen(
            BlockStarted(feature=arms.feature, block=block, num_blocks=plan.blocks[arms.feature])
        )
        run_block = RUN_BLOCK[plan.block_design]
        started = self.clock()
        try:
            self._fill_caches(task)
            entry = run_block(
                task,
                self.launcher,
                self.clock,
                lambda ratio: self.listen(BlockAdvanced(done_ratio=ratio)),
                self.host,
            )
            return self._kept(entry)
        except ChildRefused as error:
            if error.child_exit_code == StoreError.exit_code:
                raise StoreError(
                    f"{error}; finished blocks are kept, continue with --resume {plan.campaign_id}"
                ) from error
            return self._lost(task, error, started)
        except ChildError as error:
            return self._lost(task, error, started)
        finally:
            if task.caches is not None:
                task.caches.clear_cold()

    def _kept(self, entry: BlockDone) -> BlockDone | BlockLost:
        """The block, or its first attempt thrown away: it was disturbed or not steady, and it can be run again."""
        (evidence,) = read_blocks(self.store, [entry])
        fault = worth_another_attempt(evidence)
        if fault is None or self._attempts(entry.feature, entry.block) + 1 >= MAX_ATTEMPTS:
            return entry
        return BlockLost(
            feature=entry.feature,
            block=entry.block,
            attempt=entry.attempt,
            reason=fault.text,
            wall_seconds=entry.wall_seconds,
            failure_family=fault.family,
            failure=fault.failure,
            receipts=entry.receipts,
        )

    def _caches(self, plan: CampaignPlan) -> CompileCaches | None:
        if plan.cache is None:
            return None
        return CompileCaches.of(self.store.root, plan.campaign_id, plan.cache)

    def _fill_caches(self, task: BlockTask) -> None:
        """Fill what a resumed campaign finds empty; the pilot has filled the rest."""
        for position, arm in enumerate(ARM_NAMES):
            resolved = task.arms.arm(arm)
            if task.caches is not None and task.caches.needs_filling(resolved):
                fill_cache(task.request(arm, position), self.launcher, CACHE_PATIENCE_SECONDS)
                task.caches.filled(resolved)

    def _lost(self, task: BlockTask, error: ChildError, started: float) -> BlockLost:
        # A child that breaks the protocol says nothing about itself: that is a defect of ours.
        failure = (
            error.failure
            if isinstance(error, VisitFailed)
            else DefectFailure(error_type=type(error).__name__)
        )
        return BlockLost(
            feature=task.arms.feature,
            block=task.block,
            attempt=task.attempt,
            reason=str(error),
            wall_seconds=self.clock() - started,
            failure_family=None if failure is None else failure.family,
            failure=failure,
        )

    def _lost_entries(self) -> tuple[BlockLost, ...]:
        """Discarded attempts that count against what blocks are given."""
        return self.folder.lost()[self._forgotten :]

    def _attempts(self, feature: str, block: int) -> int:
        return sum((e.feature, e.block) == (feature, block) for e in self._lost_entries())

    def _used_up(self) -> frozenset[tuple[str, int]]:
        lost = self._lost_entries()
        return frozenset(self.folder.used_up(lost)) if lost else frozenset()

    def _tell_used_up(self, queue: Sequence[tuple[str, int]]) -> None:
        used_up = self._used_up()
        if places := tuple(place for place in queue if place in used_up):
            self.listen(AttemptsUsedUp(places=places))

    def _judged(self, plan: CampaignPlan, arms: Arms) -> tuple[JudgedBlock, ...]:
        own = [block for (key, _), block in self._evidence.items() if key == arms.feature]
        return judge(own, arms, cache=plan.cache)

    def _stops(self, plan: CampaignPlan, arms: Arms) -> bool:
        """Whether a look has ended the feature before its last block; the first time, the journal is told."""
        if plan.mode == "screen":
            return False
        judged, planned = self._judged(plan, arms), plan.blocks[arms.feature]
        if len(judged) >= planned:
            return False
        looks = looks_at(plan, arms, judged, ended=False)
        if not looks or not looks[-1].stops:
            return False
        record = looks[-1].record
        if arms.feature not in self.folder.stopped():
            self.folder.journal.append(Stopped(feature=arms.feature, look=record))
        self.listen(
            FeatureStopped(
                feature=arms.feature,
                blocks_run=len(judged),
                num_blocks=planned,
                outcome=record.outcome,
            )
        )
        return True

    def _finished(self, plan: CampaignPlan, arms: Arms, entry: BlockDone) -> None:
        self._evidence.pop((entry.feature, entry.block), None)
        (self._evidence[entry.feature, entry.block],) = read_blocks(self.store, [entry])
        judged = self._judged(plan, arms)
        known = contrasts(judged)
        (this,) = (block for block in judged if block.evidence.entry == entry)
        self.listen(
            BlockFinished(
                feature=entry.feature,
                block=entry.block,
                num_blocks=plan.blocks[entry.feature],
                reasons=tuple(fault.text for fault in this.faults),
                estimate=estimate_from_contrasts(known, confidence=confidence(plan, arms))
                if known
                else None,
            )
        )

    def _decide(self, *, interrupted: bool) -> CampaignResult:
        # Read everything back: what is decided is what is on the disk.
        record, decisions = analyse_campaign(self.store, self.folder.path.name, now=self.now())
        for decision in decisions:
            self.store.write_decision(decision)
        self.store.write_campaign(record)
        caches = self._caches(self.folder.plan())
        if caches is not None and record.status == "COMPLETE":
            caches.clear()
        return CampaignResult(campaign=record, decisions=decisions, interrupted=interrupted)


def spent_before(folder: CampaignFolder) -> float:
    """Seconds of the budget that a resumed campaign has used: what the pilot and its blocks took.

    A person who resumes wants the missing blocks, so at least what those are expected to take is left.
    """
    plan = folder.plan()
    used = plan.pilot_seconds + sum(
        entry.wall_seconds for entry in folder.journal.read() if not isinstance(entry, Stopped)
    )
    needed = sum(plan.feature(feature).block_seconds for feature, _block in folder.missing())
    return min(used, plan.budget_seconds - RESUME_RATIO * needed)
