"""Simulated campaigns with known truth: step durations of both arms of every block, and the contrasts a lab would see. Pure.

    log y = log step_seconds + effect · [arm is B] + drift(t) + process + step noise

drift is an Ornstein–Uhlenbeck process over wall time, which all arms share; process is drawn once per fresh process;
step noise is AR(1) within a process, normal or Student t; some steps are spikes, exponentially long. Contrasts are made by
the product's own `quad_contrast` and `visit_contrast`, so what a simulation says about the method it says about the code.

`QUIET` holds the spreads assumed for a well-kept GPU host. `SHARED` was fitted to A/A campaigns on a shared two-core machine
(receipts/cpu-2026-11*): quad contrasts with an SD of 8 to 9 % and an excess kurtosis near 2, a lag-1 correlation of steps
near 0.2, contrasts of 18 quads with an SD of 2 to 3 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.signal import lfilter

from lanewise.measure.stats import STEPS_PER_ARM_AND_QUAD, quad_contrast, visit_contrast

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

STEPS_PER_QUAD: Final = 2 * STEPS_PER_ARM_AND_QUAD
VISITS_PER_ARM: Final = 2
"""A sequential block visits each arm twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """A machine and what disturbs it. SDs are of log step time.

    Attributes:
        name: in tables.
        step_seconds: undisturbed step of the control.
        launch_seconds: from the end of one process to the first counted step of the next.
        drift_sd: stationary SD of the drift.
        drift_seconds: time after which its correlation has fallen to 1/e.
        process_sd: SD between fresh processes of one configuration.
        step_sd: stationary SD of step noise.
        step_correlation: of neighbouring steps of one process.
        tail_freedom: degrees of freedom of Student t innovations; None is normal.
        spike_ratio: share of steps that are spikes.
        spike_log: mean of what a spike adds to log step time.
        num_quads: quads of a block; a sequential visit takes as many steps as they give one arm.
    """

    name: str
    step_seconds: float
    launch_seconds: float
    drift_sd: float
    drift_seconds: float
    process_sd: float
    step_sd: float
    step_correlation: float
    tail_freedom: float | None
    spike_ratio: float
    spike_log: float
    num_quads: int


QUIET: Final = World(
    name="quiet",
    step_seconds=0.6,
    launch_seconds=45.0,
    drift_sd=0.005,
    drift_seconds=600.0,
    process_sd=0.0015,
    step_sd=0.003,
    step_correlation=0.5,
    tail_freedom=None,
    spike_ratio=0.02,
    spike_log=0.05,
    num_quads=12,
)

SHARED: Final = World(
    name="shared CPU",
    step_seconds=0.1,
    launch_seconds=3.0,
    drift_sd=0.09,
    drift_seconds=15.0,
    process_sd=0.01,
    step_sd=0.08,
    step_correlation=0.2,
    tail_freedom=4.0,
    spike_ratio=0.05,
    spike_log=0.15,
    num_quads=18,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSeconds:
    """Step durations of one block of many campaigns.

    Attributes:
        control: campaign × visit × step, in the order they were taken.
        treated: the same of arm B.
    """

    control: Floats
    treated: Floats


def lockstep_blocks(
    world: World, effect_log: float, *, num_campaigns: int, num_blocks: int, seed: int
) -> Iterator[BlockSeconds]:
    """Blocks of two fresh processes that take turns in random `ABBA` / `BAAB` quads.

    Args:
        world: what disturbs the steps.
        effect_log: true effect of arm B.
        num_campaigns: campaigns simulated side by side.
        num_blocks: blocks of each.
        seed: of all that is random.
    """
    machine = _Machine(world, num_campaigns, seed)
    num_steps = STEPS_PER_QUAD * world.num_quads
    per_arm = num_steps // 2
    for _ in range(num_blocks):
        machine.pass_seconds(world.launch_seconds)
        drift = machine.drift(num_steps)
        first_of_quad = STEPS_PER_QUAD * np.arange(world.num_quads)[:, None]
        outer, inner = first_of_quad + np.array([0, 3]), first_of_quad + np.array([1, 2])
        starts_with_control = machine.coin(world.num_quads)[:, :, None]
        control_at = np.where(starts_with_control, outer, inner).reshape(num_campaigns, per_arm)
        treated_at = np.where(starts_with_control, inner, outer).reshape(num_campaigns, per_arm)
        control, treated = (
            np.take_along_axis(drift, at, axis=1) + machine.process(per_arm)
            for at in (control_at, treated_at)
        )
        yield BlockSeconds(
            control=_seconds(world, control)[:, None],
            treated=_seconds(world, treated + effect_log)[:, None],
        )


def sequential_blocks(
    world: World, effect_log: float, *, num_campaigns: int, num_blocks: int, seed: int
) -> Iterator[BlockSeconds]:
    """Blocks of four fresh processes one after another, `ABBA` or `BAAB` at random. Arguments as above."""
    machine = _Machine(world, num_campaigns, seed)
    num_steps = STEPS_PER_ARM_AND_QUAD * world.num_quads
    for _ in range(num_blocks):
        visits = np.empty((num_campaigns, 2 * VISITS_PER_ARM, num_steps))
        for position in range(2 * VISITS_PER_ARM):
            machine.pass_seconds(world.launch_seconds)
            visits[:, position] = machine.drift(num_steps) + machine.process(num_steps)
        starts_with_control = machine.coin(1)[:, :, None]
        outer, inner = visits[:, [0, 3]], visits[:, [1, 2]]
        control = np.where(starts_with_control, outer, inner)
        treated = np.where(starts_with_control, inner, outer)
        yield BlockSeconds(
            control=_seconds(world, control), treated=_seconds(world, treated + effect_log)
        )


def contrasts(
    world: World,
    effect_log: float,
    *,
    num_campaigns: int,
    num_blocks: int,
    seed: int,
    design: Literal["lockstep", "sequential"] = "lockstep",
) -> Floats:
    """Campaign × block: the contrasts that the product's functions make of the simulated steps."""
    simulate = lockstep_blocks if design == "lockstep" else sequential_blocks
    found = np.empty((num_campaigns, num_blocks))
    blocks = simulate(
        world, effect_log, num_campaigns=num_campaigns, num_blocks=num_blocks, seed=seed
    )
    for index, block in enumerate(blocks):
        control, treated = block.control.tolist(), block.treated.tolist()
        if design == "lockstep":
            found[:, index] = [
                quad_contrast(a, b) for (a,), (b,) in zip(control, treated, strict=True)
            ]
        else:
            found[:, index] = [visit_contrast(a, b) for a, b in zip(control, treated, strict=True)]
    return found


def visits_in_a_row(
    world: World, *, num_campaigns: int, num_visits: int, num_steps: int, seed: int
) -> Floats:
    """Campaign × visit × step, in seconds: fresh processes of one configuration, one after another."""
    machine = _Machine(world, num_campaigns, seed)
    visits = np.empty((num_campaigns, num_visits, num_steps))
    for index in range(num_visits):
        machine.pass_seconds(world.launch_seconds)
        visits[:, index] = machine.drift(num_steps) + machine.process(num_steps)
    return _seconds(world, visits)


class _Machine:
    """State of the drift of many campaigns, and the source of everything random."""

    def __init__(self, world: World, num_campaigns: int, seed: int) -> None:
        self._world, self._num = world, num_campaigns
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._level = world.drift_sd * self._random.standard_normal(num_campaigns)

    def pass_seconds(self, seconds: float) -> None:
        """Let the drift go on unobserved."""
        kept = math.exp(-seconds / self._world.drift_seconds)
        spread = self._world.drift_sd * math.sqrt(1 - kept * kept)
        self._level = kept * self._level + spread * self._random.standard_normal(self._num)

    def drift(self, num_steps: int) -> Floats:
        """Drift at each of the next steps; one step after the other passes."""
        kept = math.exp(-self._world.step_seconds / self._world.drift_seconds)
        noise = self._random.standard_normal((self._num, num_steps))
        path = _autoregression(
            self._world.drift_sd * math.sqrt(1 - kept * kept) * noise, kept, self._level
        )
        self._level = path[:, -1]
        return path

    def process(self, num_steps: int) -> Floats:
        """Log step times of a fresh process beside drift: its own level, step noise and spikes."""
        world = self._world
        kept = world.step_correlation
        noise = world.step_sd * math.sqrt(1 - kept * kept) * self._innovations(num_steps)
        start = world.step_sd * self._random.standard_normal(self._num)
        spikes = self._random.random((self._num, num_steps)) < world.spike_ratio
        heights = self._random.exponential(world.spike_log, (self._num, num_steps))
        own = world.process_sd * self._random.standard_normal((self._num, 1))
        log_time: Floats = (
            _autoregression(noise, kept, start) + own + np.where(spikes, heights, 0.0)
        )
        return log_time

    def coin(self, num_tosses: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Campaign × toss."""
        return self._random.random((self._num, num_tosses)) < 0.5

    def _innovations(self, num_steps: int) -> Floats:
        """Of unit SD."""
        freedom = self._world.tail_freedom
        if freedom is None:
            return self._random.standard_normal((self._num, num_steps))
        values = self._random.standard_t(freedom, (self._num, num_steps))
        return values * math.sqrt((freedom - 2) / freedom)


def _autoregression(innovations: Floats, kept: float, before: Floats) -> Floats:
    """x_i = kept · x_{i−1} + innovation_i along the last axis, with x_{−1} = `before`."""
    path, _ = lfilter([1.0], [1.0, -kept], innovations, axis=-1, zi=kept * before[:, None])
    return np.asarray(path, dtype=np.float64)


def _seconds(world: World, log_time: Floats) -> Floats:
    return np.asarray(world.step_seconds * np.exp(log_time), dtype=np.float64)
