"""The three things a person can ask of the lab: a plan, a new campaign, the rest of an unfinished one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lanewise.errors import UsageError
from lanewise.lab.caches import CompileCaches
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.children import Launcher
from lanewise.lab.conditions import Conditions, current_conditions
from lanewise.lab.events import CampaignResult, Listener
from lanewise.lab.keys import Verb
from lanewise.lab.placement import aside, place, replace
from lanewise.lab.plan import CampaignPlan
from lanewise.lab.prepare import CampaignOptions, make_plan
from lanewise.lab.resume import Given, newest_unfinished, require_agreement, require_verb
from lanewise.lab.runner import Runner, spent_before
from lanewise.lab.screening import ScreenDesign, make_screen_plan
from lanewise.lane.built import require_built
from lanewise.lane.digest import lane_digest
from lanewise.lane.machine import DeviceType
from lanewise.lane.schema import Lane
from lanewise.measure.host import Host
from lanewise.receipts.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Lab:
    """What the lab needs from the world.

    Attributes:
        store: takes receipts and documents; a folder of this machine.
        launcher: number of threads → starts processes.
        clock: seconds, never going back.
        now: RFC 3339 time in UTC.
        new_token: a short random word that makes campaign names unique.
        free_memory_bytes: device → memory that is free on it now, or None when the system does not tell.
        listen: told what happens.
        conditions: machine class, number of threads → conditions of this machine now.
        host: the machine's processors; None neither places processes nor watches them.
    """

    store: Store
    launcher: Callable[[int], Launcher]
    clock: Callable[[], float]
    now: Callable[[], str]
    new_token: Callable[[], str]
    free_memory_bytes: Callable[[DeviceType], int | None]
    listen: Listener
    conditions: Callable[[str, int], Conditions] = current_conditions
    host: Host | None = None

    def plan(self, options: CampaignOptions) -> CampaignPlan:
        """Time a pilot and plan; nothing is written.

        Raises:
            UsageError: the lane or a feature cannot be measured, or the budget is too small for one block.
            NotBuiltError: the lane asks for what this version does not implement.
            ChildError: the base lane's process died.
        """
        created_at, campaign_id, caches = self._new(options)
        try:
            return self._plan(
                options, self.launcher(options.num_threads), created_at, campaign_id, caches
            )
        finally:
            caches.clear()

    def start(self, options: CampaignOptions) -> CampaignResult:
        """Plan and run a new campaign; raises as `plan` does, and StoreError when the disk refuses it."""
        return self._start(options, None)

    def screen(self, options: CampaignOptions, screen_design: ScreenDesign) -> CampaignResult:
        """Plan and run a screen; its decisions rank candidates and can never graduate.

        Raises:
            UsageError: the lane or a feature cannot be screened, or the budget is too small.
            NotBuiltError: the lane asks for what this version does not implement.
            ChildError: the base lane's process died.
            StoreError: the disk refuses it.
        """
        return self._start(options, screen_design)

    def resume(
        self,
        lane: Lane,
        machine_class: str,
        campaign_id: str | None,
        *,
        verb: Verb = "ablate",
        given: Given | None = None,
        retry_crashed: bool = False,
    ) -> CampaignResult:
        """Run the missing blocks of a campaign of this lane; the newest unfinished one of the command when none is named.

        Args:
            lane: must have the digest of the plan's.
            machine_class: of this machine.
            campaign_id: which campaign.
            verb: the command that resumes.
            given: flags beside `--resume`, which must not contradict the plan.
            retry_crashed: give blocks whose attempts have failed their attempts anew.

        Raises:
            UsageError: there is no such campaign, it is of another lane, machine or command, or a flag contradicts its plan.
            CampaignError: it is being driven by another process, or its files are damaged.
        """
        self._require_local_store()
        if campaign_id is None:
            folder = newest_unfinished(self.store.root, lane.name, verb)
        else:
            folder = CampaignFolder.find(self.store.root, campaign_id)
        plan = folder.plan()
        require_verb(plan, verb)
        if given is not None:
            require_agreement(plan, given)
        if lane_digest(plan.lane) != lane_digest(lane):
            raise UsageError(
                f"campaign {plan.campaign_id} measured lane {plan.lane.name!r} as {lane_digest(plan.lane)[:19]}, and "
                f"{lane.name!r} is {lane_digest(lane)[:19]}; undo the change, or start a new campaign"
            )
        if plan.machine_class != machine_class:
            raise UsageError(
                f"campaign {plan.campaign_id} ran on {plan.machine_class}, this is {machine_class}; blocks of "
                "different kinds of machines never meet in one campaign, so start a new one"
            )
        return self._run(
            folder,
            self.launcher(plan.num_threads),
            spent_seconds=spent_before(folder),
            retry_crashed=retry_crashed,
        )

    def _start(
        self, options: CampaignOptions, screen_design: ScreenDesign | None
    ) -> CampaignResult:
        launcher = self.launcher(options.num_threads)
        created_at, campaign_id, caches = self._new(options)
        try:
            plan = self._plan(options, launcher, created_at, campaign_id, caches, screen_design)
            folder = CampaignFolder.create(self.store.root, plan)
        except BaseException:
            caches.clear()
            raise
        return self._run(folder, launcher, spent_seconds=plan.pilot_seconds)

    def _new(self, options: CampaignOptions) -> tuple[str, str, CompileCaches]:
        """Time, name and compile caches of a new campaign."""
        self._require_local_store()
        require_built(options.lane)
        created_at = self.now()
        campaign_id = f"{created_at[:10]}-{options.lane.name}-{self.new_token()}"
        return (
            created_at,
            campaign_id,
            CompileCaches.of(self.store.root, campaign_id, options.cache),
        )

    def _plan(
        self,
        options: CampaignOptions,
        launcher: Launcher,
        created_at: str,
        campaign_id: str,
        caches: CompileCaches,
        screen_design: ScreenDesign | None = None,
    ) -> CampaignPlan:
        placement = place(
            self.host,
            num_threads=options.num_threads,
            device_type=options.device_type,
            wanted=options.pin,
        )
        make: Callable[..., CampaignPlan] = (
            make_plan
            if screen_design is None
            else partial(make_screen_plan, screen_design=screen_design)
        )
        with aside(self.host, placement):
            return make(
                options,
                store=self.store,
                launcher=launcher,
                clock=self.clock,
                campaign_id=campaign_id,
                created_at=created_at,
                free_memory_bytes=self.free_memory_bytes,
                conditions=lambda: self.conditions(options.machine_class, options.num_threads),
                listen=self.listen,
                placement=placement,
                caches=caches,
            )

    def _run(
        self,
        folder: CampaignFolder,
        launcher: Launcher,
        *,
        spent_seconds: float,
        retry_crashed: bool = False,
    ) -> CampaignResult:
        plan = folder.plan()
        placement = replace(
            self.host,
            num_threads=plan.num_threads,
            device_type=plan.device_type,
            pinned=plan.pinned,
        )
        with folder.locked(), aside(self.host, placement):
            return Runner(
                store=self.store,
                folder=folder,
                launcher=launcher,
                clock=self.clock,
                now=self.now,
                listen=self.listen,
                spent_seconds=spent_seconds,
                host=self.host,
                cores=placement.cores,
                retry_crashed=retry_crashed,
            ).run()

    def _require_local_store(self) -> None:
        if "://" in self.store.root:
            raise UsageError(
                f"--store {self.store.root} is not a folder of this machine; a campaign needs one for its lock and "
                "journal. Copy its receipts to the URI afterwards"
            )
