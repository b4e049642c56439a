"""Freeze the FLOPs and parameters of every preset, and write docs/FLOPS.md's tables from the frozen file.

python -m tools.flops             rewrite the tables of docs/FLOPS.md from the frozen numbers
python -m tools.flops --freeze    count every preset again first; a changed number needs a new CONVENTION_VERSION
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lanewise.lane.flops import CONVENTION, CONVENTION_VERSION, lane_flops
from lanewise.lane.hardware_flops import conventions
from lanewise.lane.load import load_lane, preset_names

ROOT = Path(__file__).resolve().parent.parent
FROZEN = ROOT / "tests/lane/golden/flops.json"
PAGE = ROOT / "docs/FLOPS.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"


def counted() -> dict[str, Any]:
    """Every preset by the code as it is."""
    return {
        "convention": CONVENTION,
        "convention_version": CONVENTION_VERSION,
        "presets": {name: _preset(name) for name in preset_names()},
    }


def _preset(name: str) -> dict[str, Any]:
    lane = load_lane(name)
    flops, three = lane_flops(lane), conventions(lane, {})
    return {
        "sequence_length": lane.batch.sequence_length,
        "params_total": flops.params_total,
        "params_active": flops.params_active,
        "training_flops_per_token": {
            "lane_numerator": three.lane_numerator,
            "hardware": three.hardware,
            "six_n_active": three.six_n_active,
        },
        "changes": [asdict(change) for change in three.changes],
        "components": [asdict(row) for row in flops.components],
    }


def tables(frozen: dict[str, Any]) -> str:
    """The generated part of the page."""
    lines = [
        f"Convention `{frozen['convention']}` {frozen['convention_version']}, training FLOPs per token.",
        "",
        "| preset | S | parameters | active | lane numerator | hardware | 6·N active |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, preset in frozen["presets"].items():
        three = preset["training_flops_per_token"]
        cells = (
            f"`{name}`",
            f"{preset['sequence_length']:,}",
            f"{preset['params_total']:,}",
            f"{preset['params_active']:,}",
            *(f"{three[key]:,.0f}" for key in ("lane_numerator", "hardware", "six_n_active")),
        )
        lines.append("| " + " | ".join(cells) + " |")
    for name, preset in frozen["presets"].items():
        lines += ["", f"### `{name}`", ""]
        lines += [
            "| component | count | parameters | active | forward FLOP/token | training FLOP/token |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['component']} | {row['count']} | {row['params']:,} | {row['active_params']:,} | "
            f"{row['forward_flops_per_token']:,.0f} | {row['training_flops_per_token']:,.0f} |"
            for row in preset["components"]
        ]
        lines += [
            f"\nHardware against numerator, {change['component']}: {change['reason']}, "
            f"{change['flops_per_token']:+,.0f}."
            for change in preset["changes"]
        ]
    return "\n".join(lines) + "\n"


def page(text: str, frozen: dict[str, Any]) -> str:
    """The page with its generated part replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + tables(frozen) + "\n" + END + after


def main(arguments: list[str]) -> int:
    """Run as the module's docstring says."""
    if arguments == ["--freeze"]:
        before = json.loads(FROZEN.read_text()) if FROZEN.exists() else None
        now = json.loads(json.dumps(counted()))
        if before is not None and before["convention_version"] == now["convention_version"]:
            changed = [n for n, p in before["presets"].items() if now["presets"].get(n, p) != p]
            if changed:
                print(
                    f"error: {', '.join(changed)} count differently than frozen under version "
                    f"{CONVENTION_VERSION}; raise CONVENTION_VERSION in lane/flops.py and say why in docs/LOG.md",
                    file=sys.stderr,
                )
                return 1
        FROZEN.write_text(json.dumps(now, indent=1) + "\n")
    elif arguments:
        print(__doc__, file=sys.stderr)
        return 2
    PAGE.write_text(page(PAGE.read_text(), json.loads(FROZEN.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
