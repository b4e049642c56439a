"""Effects of known size on real processes: a delay of 5 % and one of 2 % of the step are found and covered, none is not.

The lab is calibrated first, and again while δ is too wide for 2 % (agreeing A/A campaigns are pooled); every control then
takes as many blocks as its plan asks for at that noise. A run that was cut off goes on with what is missing (`_progress`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from lanewise.lab.calibrate import CalibrateOptions, calibrate, control_blocks, plant
from lanewise.lab.prepare import CampaignOptions
from lanewise.lab.session import Lab
from lanewise.receipts.calibration import CalibrationRecord, ControlResult
from tools.proofs import Claim, Proof
from tools.proofs._progress import Parts
from tools.proofs.real_lab import real_lab, tiny_campaign

BLOCKS = 16
REPEATS = 3
MOST_CALIBRATIONS = 4
RATIOS = (0.05, 0.02, 0.0)
CALIBRATION_SECONDS = 190.0
"""About 20 quads a block where a step takes 0.11 s."""
PILOT_SECONDS = 8.0
SPARE = 1.1
"""A control's blocks are as long as those of the calibration; the reserve of a budget is on top."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Where the proof runs: a real machine, or in tests one that is made up."""

    lab: Lab
    campaign: Callable[[float, int], CampaignOptions]
    """Budget in seconds, seed → options."""
    parts: Parts


def run(scale: float) -> Proof:
    """The proof on this machine; at scale 1 about 15 minutes on two quiet cores."""
    settings = {
        "scale": scale,
        "blocks": BLOCKS,
        "budget_seconds": CALIBRATION_SECONDS,
        "repeats": REPEATS,
    }
    parts = Parts("planted_effects", settings, total=1 + _repeats(scale) * len(RATIOS))
    proof = prove(
        scale,
        World(
            lab=real_lab(str(parts.folder / "store")),
            campaign=lambda budget, seed: tiny_campaign(budget_seconds=budget, seed=seed),
            parts=parts,
        ),
    )
    parts.close()
    return proof


def _repeats(scale: float) -> int:
    return max(1, round(REPEATS * scale))


def prove(scale: float, world: World) -> Proof:
    """The same in a world of the caller's."""
    parts = world.parts
    calibration, rounds = _calibrated(scale, world)
    controls: dict[float, list[ControlResult]] = {ratio: [] for ratio in RATIOS}
    refused: dict[float, str] = {}
    for repeat in range(_repeats(scale)):
        for ratio in RATIOS:
            blocks = control_blocks(calibration, ratio)
            if blocks is None:
                refused[ratio] = "no plan finds it at this noise"
                continue
            part = f"delay of {ratio:.0%}, {repeat + 1}"
            known = parts.get(part)
            if known is not None:
                controls[ratio].append(ControlResult.model_validate(known))
                continue
            started = time.monotonic()
            budget = PILOT_SECONDS + SPARE * blocks * calibration.seconds_per_block
            campaign = world.campaign(budget, 100 + repeat)
            control = plant(world.lab, campaign, calibration, ratio)[0]
            controls[ratio].append(control)
            words = (
                f"{control.verdict} after {control.num_blocks} of {control.planned_blocks} blocks"
            )
            parts.add(part, control.model_dump(mode="json"), started=started, words=words)
    return Proof(
        name="planted_effects",
        title="Planted delays on nam56r-tiny",
        counts={
            "calibrations": rounds,
            "A/A blocks": calibration.num_blocks,
            "controls": sum(map(len, controls.values())),
        },
        claims=tuple(_claim(ratio, controls[ratio], refused.get(ratio)) for ratio in RATIOS),
        seconds=parts.seconds,
        tables={"Planted delays": _table(calibration, controls)},
    )


def _calibrated(scale: float, world: World) -> tuple[CalibrationRecord, int]:
    """A calibration that a 2 % control can be planned from, or the last of `MOST_CALIBRATIONS`."""
    blocks = max(8, round(BLOCKS * scale))
    for round_ in range(1, MOST_CALIBRATIONS + 1):
        part = f"calibration {round_}"
        known = world.parts.get(part)
        if known is not None:
            calibration: CalibrationRecord | None = CalibrationRecord.model_validate(known)
        else:
            started = time.monotonic()
            budget = max(60.0, CALIBRATION_SECONDS * blocks / BLOCKS)
            asked = CalibrateOptions(campaign=world.campaign(budget, round_), blocks=blocks)
            calibration = calibrate(world.lab, asked).calibration
            assert calibration is not None, "nobody interrupts a proof"
            words = (
                f"block SD {math.expm1(calibration.block_sd_log):.2%}, "
                f"δ {math.expm1(calibration.margin.log_value):.2%}"
            )
            found = calibration.model_dump(mode="json")
            world.parts.add(part, found, started=started, words=words)
        assert calibration is not None, "either known or measured"
        if control_blocks(calibration, min(ratio for ratio in RATIOS if ratio)) is not None:
            break
    return calibration, round_


def _claim(ratio: float, controls: list[ControlResult], refused: str | None) -> Claim:
    """All but one of several controls, the only one of one: each errs in one case of twenty."""
    needed = max(1, len(controls) - 1)
    covered = sum(control.covered for control in controls)
    if ratio:
        found = sum(control.found for control in controls)
        text = f"a delay of {ratio:.0%} of the step is called SLOWER, and the interval covers it"
        measured = f"found {found} of {len(controls)}, covered {covered}"
        required = f"at least {needed} of {len(controls)} each"
        holds = bool(controls) and found >= needed and covered >= needed
    else:
        called = sum(control.verdict in ("FASTER", "SLOWER") for control in controls)
        text = "a delay of nothing is not called a difference"
        measured = f"{called} of {len(controls)} called"
        required = f"at most {len(controls) - needed} of {len(controls)}"
        holds = bool(controls) and called <= len(controls) - needed
    return Claim(text=text, measured=refused or measured, required=required, holds=holds)


def _table(
    calibration: CalibrationRecord, controls: dict[float, list[ControlResult]]
) -> list[list[str]]:
    rows = [["planted", "blocks run", "planned", "found", "interval", "verdict"]]
    for ratio, results in controls.items():
        for control in results:
            interval = control.interval_log
            rows.append(
                [
                    f"{ratio:.0%}",
                    str(control.num_blocks),
                    str(control.planned_blocks),
                    "—" if control.log_ratio is None else f"{math.expm1(control.log_ratio):+.2%}",
                    "—"
                    if interval is None
                    else f"[{math.expm1(interval.low):+.2%}, {math.expm1(interval.high):+.2%}]",
                    control.verdict,
                ]
            )
    noise = f"block SD {math.expm1(calibration.block_sd_log):.2%}"
    rows.append([noise, str(calibration.num_blocks), "A/A blocks", "", "", ""])
    return rows
