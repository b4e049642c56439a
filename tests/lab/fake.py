"""A training process that exists in memory only: it speaks the child protocol, moves a fake clock, writes receipts."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lanewise.lab.conditions import Conditions
from lanewise.lab.prepare import CampaignOptions
from lanewise.lab.session import Lab
from lanewise.lane.digest import digest, lane_identity
from lanewise.lane.load import load_lane
from lanewise.receipts.extension_keys import PROTOCOL_KEY
from lanewise.receipts.instruments import PLANTED_KEY
from lanewise.receipts.schema import StepSeries
from lanewise.receipts.store import Store
from lanewise.train.request import PairRequest, RunRequest
from tests.receipts.factory import make_body, make_receipt, sha

MACHINE = "cpu-x86_64-2c"
BASE_SECONDS = 0.1
SETUP_SECONDS = 0.4
OWN_ORDER = "flash.torch"


class FakeClock:
    """Seconds that pass only when somebody spends them."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def spend(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Script:
    """How fake children behave; each rule sees the request and the step."""

    seconds: Callable[[RunRequest, int, float], float] = lambda request, step, now: BASE_SECONDS
    loss: Callable[[RunRequest, int], float] = lambda request, step: 5.5 - 0.05 * step
    exit_code: Callable[[RunRequest, int], int | None] = lambda request, step: None
    refusal: Callable[[RunRequest], tuple[str, int] | None] = lambda request: None
    hangs: Callable[[RunRequest, int], bool] = lambda request, step: False
    interrupt: Callable[[RunRequest, int], bool] = lambda request, step: False
    observed: Callable[[RunRequest, str, str], str] = lambda request, op, asked: asked
    body: Callable[[RunRequest], Mapping[str, Any]] = lambda request: {}
    setup_seconds: Callable[[RunRequest], float] = lambda request: SETUP_SECONDS
    resident_bytes: int = 300 * 2**20


def place(request: RunRequest) -> str:
    """`feature/block/arm` of a visit, `pilot` outside a campaign."""
    at = request.experiment
    return "pilot" if at is None else f"{at.ablation_id}/{at.block}/{at.arm}"


def state(request: RunRequest, feature: str) -> str:
    return next((f.state for f in request.resolved.features if f.key == feature), "absent")


@dataclass
class FakeEndpoint:
    request: RunRequest
    world: "World"
    pid: int
    durations: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    queue: list[dict[str, Any]] = field(default_factory=list)
    died: int | None = None
    closed: bool = False
    aborted: bool = False

    def __post_init__(self) -> None:
        script = self.world.script
        refusal = script.refusal(self.request)
        if refusal is not None:
            self.queue.append({"event": "failed", "error": refusal[0], "exit_code": refusal[1]})
            return
        seconds = script.setup_seconds(self.request)
        self.world.clock.spend(seconds)
        self.queue.append({"event": "ready", "pid": self.pid, "setup_seconds": seconds})

    def send(self, message: Mapping[str, Any]) -> None:
        if self.died is not None:
            raise BrokenPipeError
        command = message["command"]
        if command == "step":
            self._step(int(message["count"]))
        elif command == "finish":
            self._finish(message)
        else:
            self.aborted = True

    def receive(self, timeout_seconds: float) -> Mapping[str, Any]:
        if self.queue:
            return self.queue.pop(0)
        if self.died is not None:
            raise EOFError
        self.world.clock.spend(timeout_seconds)
        raise TimeoutError

    def resident_bytes(self) -> int | None:
        return self.world.script.resident_bytes

    def close(self, grace_seconds: float) -> int | None:
        self.closed = True
        return 0 if self.died is None else self.died

    def _step(self, count: int) -> None:
        script, clock = self.world.script, self.world.clock
        tags: list[list[str]] = []
        durations: list[float] = []
        for _ in range(count):
            step = len(self.durations)
            self.world.turns.append((place(self.request), step))
            if script.interrupt(self.request, step):
                raise KeyboardInterrupt
            self.died = script.exit_code(self.request, step)
            if self.died is not None or script.hangs(self.request, step):
                return
            planted = self.request.planted_delay_ratio or 0.0
            seconds = script.seconds(self.request, step, clock()) * (1.0 + planted)
            clock.spend(seconds)
            durations.append(seconds)
            self.durations.append(seconds)
            self.losses.append(script.loss(self.request, step))
            tags.append([])
        self.queue.append(
            {
                "event": "stepped",
                "duration_seconds": durations,
                "loss": self.losses[-count:],
                "tags": tags,
            }
        )

    def _finish(self, message: Mapping[str, Any]) -> None:
        self.world.clock.spend(0.3)
        changes = receipt_changes(self.request, self.world.script, self.losses)
        changes["timing.warmup"] = message["warmup"]
        host = message["host"]
        changes["host"] = None if host is None or "missing" in host else host
        if changes["host"] is None:
            changes["missing.host"] = "the fake host was not watched"
        changes |= self.world.script.body(self.request)
        num_steps = len(self.durations)
        receipt_id, path = self.world.store.write_receipt(
            make_body(changes),
            steps=StepSeries(
                step=tuple(range(num_steps)),
                start_seconds=tuple(float(step) for step in range(num_steps)),
                duration_seconds=tuple(self.durations),
                data_wait_seconds=(0.0,) * num_steps,
                loss=tuple(self.losses),
                grad_norm=(1.0,) * num_steps,
            ),
        )
        self.queue.append(
            {
                "event": "finished",
                "receipt_id": receipt_id,
                "receipt_path": path,
                "validity": "valid",
                "reasons": [],
            }
        )


class FakePair:
    """One process that holds both arms of a screen."""

    def __init__(self, request: PairRequest, world: "World", pid: int) -> None:
        self.request, self.pid = request, pid
        self.world = world
        self.arms = {
            "A": FakeEndpoint(request=request.control, world=world, pid=pid),
            "B": FakeEndpoint(request=request.treated, world=world, pid=pid),
        }
        self.closed = False
        self.aborted = False
        ready = [arm.queue.pop(0) for arm in self.arms.values()]
        self.queue = [next((m for m in ready if m["event"] == "failed"), ready[0])]

    @property
    def died(self) -> int | None:
        return next((arm.died for arm in self.arms.values() if arm.died is not None), None)

    def send(self, message: Mapping[str, Any]) -> None:
        if self.died is not None:
            raise BrokenPipeError
        if message["command"] == "turns":
            stepped = [self._turn(letter) for letter in message["order"]]
            if None not in stepped:
                joined = {
                    key: [one[key][0] for one in stepped]
                    for key in ("duration_seconds", "loss", "tags")
                }
                self.queue.append({"event": "stepped", **joined})
        elif message["command"] == "finish":
            written = {}
            for name, arm in self.arms.items():
                arm.send(message)
                written[name] = arm.queue.pop(0)["receipt_id"]
            validity = dict.fromkeys(written, "valid")
            self.queue.append({"event": "finished", "receipts": written, "validity": validity})
        else:
            self.aborted = True

    def _turn(self, letter: str) -> dict[str, Any] | None:
        arm = self.arms[letter]
        if self.died is not None:
            return None
        arm.send({"command": "step", "count": 1})
        return arm.queue.pop(0) if arm.queue else None

    def receive(self, timeout_seconds: float) -> Mapping[str, Any]:
        if self.queue:
            return self.queue.pop(0)
        if self.died is not None:
            raise EOFError
        self.world.clock.spend(timeout_seconds)
        raise TimeoutError

    def resident_bytes(self) -> int | None:
        return 2 * self.world.script.resident_bytes

    def close(self, grace_seconds: float) -> int | None:
        self.closed = True
        return 0 if self.died is None else self.died


def receipt_changes(request: RunRequest, script: Script, losses: list[float]) -> dict[str, Any]:
    resolved = request.resolved
    assert request.experiment is not None
    backends = []
    for op, asked in resolved.op_preferences.items():
        chosen = asked[0] if asked else OWN_ORDER
        seen = script.observed(request, op, chosen)
        backends.append(
            {
                "op": op,
                "requested": list(asked),
                "chosen": chosen,
                "observed": [seen],
                "launches": 1000,
                "proof": "counter",
                "rejected": {} if seen == chosen else {chosen: "T=65 is not a multiple of 64"},
                "fallback_reason": None,
            }
        )
    return {
        "lane": {
            "name": resolved.lane.name,
            "canonical_name": resolved.canonical_name,
            "digest": resolved.digest,
            "layer_pattern": resolved.lane.model.pattern,
            "num_layers": resolved.lane.model.num_layers,
            "spec": lane_identity(resolved.lane),
        },
        "config_digest": resolved.config_digest,
        "protocol_digest": digest(request.protocol),
        "features": [
            {
                "key": f.key,
                "role": f.role,
                "requested": f.state,
                "effective": f.state,
                "source": f.source,
            }
            for f in resolved.features
        ],
        "backends": backends,
        "backend_versions": {
            f"{record['op']}={record['chosen']}": {"torch": "2.13.0"} for record in backends
        },
        "experiment": request.experiment.model_dump(mode="json"),
        "machine.class_name": resolved.machine_class,
        "numerics.losses_finite": all(math.isfinite(loss) for loss in losses),
        "compile.enabled": resolved.runtime_switches.get("regional_compile", False),
        "data_digest": sha("corpus"),
        "memory.peak_allocated_bytes": 100_000_000 if request.measure_memory else None,
        "extensions": extensions(request),
    }


def extensions(request: RunRequest) -> dict[str, Any]:
    found = {PROTOCOL_KEY: dict(request.protocol)}
    if request.planted_delay_ratio is not None:
        found[PLANTED_KEY] = {"step_time_ratio": 1.0 + request.planted_delay_ratio, "note": "fake"}
    return found


def fake_conditions(machine_class: str, num_threads: int) -> Conditions:
    """What receipts of fake children say about machine and software."""
    receipt = make_receipt({"machine.class_name": machine_class})
    return Conditions(machine=receipt.machine, environment=receipt.environment)


@dataclass
class World:
    """Everything a campaign needs, faked: clock, children, memory; only the store is real."""

    store: Store
    script: Script = field(default_factory=Script)
    clock: FakeClock = field(default_factory=FakeClock)
    free_bytes: int | None = 8 * 2**30
    events: list[Any] = field(default_factory=list)
    endpoints: list[Any] = field(default_factory=list)
    turns: list[tuple[str, int]] = field(default_factory=list)
    now: str = "2026-11-23T10:00:00Z"
    conditions: Callable[[str, int], Conditions] = fake_conditions
    host: Any = None
    tokens: list[str] = field(default_factory=lambda: [f"t{n}" for n in range(20, 0, -1)])

    def launch(self, request: RunRequest | PairRequest) -> FakeEndpoint | FakePair:
        kind = FakePair if isinstance(request, PairRequest) else FakeEndpoint
        endpoint = kind(request=request, world=self, pid=1000 + len(self.endpoints))
        self.endpoints.append(endpoint)
        return endpoint

    def lab(self) -> Lab:
        return Lab(
            store=self.store,
            launcher=lambda num_threads: self.launch,
            clock=self.clock,
            now=lambda: self.now,
            new_token=self.tokens.pop,
            free_memory_bytes=lambda device: self.free_bytes,
            listen=self.events.append,
            conditions=self.conditions,
            host=self.host,
        )

    def seen(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def options(**changes: Any) -> CampaignOptions:
    """A campaign of one feature; changes replace fields."""
    wanted: dict[str, Any] = {
        "lane": load_lane("nam56r-tiny"),
        "machine_class": MACHINE,
        "device_type": "cpu",
        "features": ("fused_moe",),
        "budget_seconds": 120.0,
        "design": "leave-one-out",
        "block_design": None,
        "blocks": None,
        "seed": 0,
        "num_threads": 1,
        "data_path": None,
    }
    return CampaignOptions(**{**wanted, **changes})
