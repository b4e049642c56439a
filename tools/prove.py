"""Runs the proofs and writes what they found: `python -m tools.prove [NAME…] [--scale 1.0] [--list]`.

Each proof is a module of `tools/proofs` (see its docstring). At full counts its result goes to
`receipts/proofs/<name>.json`, and docs/PROOF.md is made anew from all such files; with a smaller `--scale`, which proves
less than is claimed, nothing is written. Exit code 1 when a claim does not hold, 2 for an unknown name.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tools.proofs
from lanewise import __version__
from lanewise.lane.machine import detect_machine_class
from lanewise.receipts.files import write_bytes
from tools.proofs import Claim, Proof

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "receipts" / "proofs"
PAGE = ROOT / "docs" / "PROOF.md"
FORMAT = 1
PACKAGES = ("numpy", "scipy", "pydantic", "torch")

INTRODUCTION = """\
# Proof

What the documentation claims about the lab itself, tried at full counts. Made by `python -m tools.prove` from
`receipts/proofs/`; do not edit. `make prove` tries everything again, `python -m tools.prove NAME` one of them.
"""


def names() -> tuple[str, ...]:
    """Proofs there are: modules of `tools/proofs` but those whose name begins with an underscore, which help others."""
    found = (module.name for module in pkgutil.iter_modules(tools.proofs.__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def document_of(proof: Proof, *, scale: float, date: str) -> dict[str, Any]:
    """A proof as it is committed, with what it ran on.

    Args:
        proof: what was found.
        scale: share of the claimed counts.
        date: RFC 3339 time in UTC.
    """
    return {
        "format": FORMAT,
        **asdict(proof),
        "seconds": round(proof.seconds, 1),
        "scale": scale,
        "date": date,
        "machine_class": detect_machine_class("cpu"),
        "versions": {
            "lanewise": __version__,
            "python": ".".join(str(part) for part in sys.version_info[:3]),
            **{name: found for name in PACKAGES if (found := _version(name)) is not None},
        },
    }


def page(evidence: Path = EVIDENCE) -> str:
    """docs/PROOF.md, from the committed results alone."""
    documents = [json.loads(path.read_text("utf-8")) for path in sorted(evidence.glob("*.json"))]
    return "\n".join(
        [INTRODUCTION, *(section for found in documents for section in _section(found))]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.prove", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="proofs to run; default all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the claimed counts")
    parser.add_argument("--list", action="store_true", help="name the proofs and end")
    asked = parser.parse_args(arguments)
    if asked.list:
        print("\n".join(names()))
        return 0
    unknown = sorted(set(asked.names) - set(names()))
    if unknown:
        parser.error(f"no proof {', '.join(unknown)}; there are {', '.join(names())}")
    if not (math.isfinite(asked.scale) and asked.scale > 0):
        parser.error(f"--scale {asked.scale} is no share of the counts; give a number above 0")
    wanted = tuple(dict.fromkeys(asked.names)) or names()
    held = [
        _run(name, asked.scale, f"{number} of {len(wanted)}")
        for number, name in enumerate(wanted, start=1)
    ]
    print(f"{sum(held)} of {len(held)} proofs hold")
    return 0 if all(held) else 1


def _run(name: str, scale: float, place: str) -> bool:
    print(f"{name} ({place}) …", file=sys.stderr, flush=True)
    proof: Proof = importlib.import_module(f"tools.proofs.{name}").run(scale)
    print(f"{proof.title} · {_counts(proof.counts)} · {proof.seconds:.0f} s")
    for claim in proof.claims:
        print(f"  {_mark(claim.holds)} {claim.text}: {claim.measured} (required: {claim.required})")
    if scale >= 1.0:
        date = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        document = document_of(proof, scale=scale, date=date)
        content = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_bytes(str(EVIDENCE / f"{name}.json"), content.encode())
        write_bytes(str(PAGE), page().encode())
    return bool(proof.claims) and all(claim.holds for claim in proof.claims)


def _section(document: dict[str, Any]) -> list[str]:
    claims = [Claim(**claim) for claim in document["claims"]]
    versions = ", ".join(f"{name} {found}" for name, found in document["versions"].items())
    lines = [
        f"## {document['title']}",
        "",
        f"`{document['name']}` · {_counts(document['counts'])} · {document['seconds']:.0f} s on "
        f"{document['machine_class']} · {document['date'][:10]} · {versions}",
        "",
        *_rows([["", "claim", "measured", "required"], *map(_claim_row, claims)]),
        "",
    ]
    for title, rows in document["tables"].items():
        lines += [f"**{title}**", "", *_rows(rows), ""]
    return lines


def _claim_row(claim: Claim) -> list[str]:
    return [_mark(claim.holds), claim.text, claim.measured, claim.required]


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    header, *body = ["| " + " | ".join(row) + " |" for row in cells]
    return [header, "|" + "---|" * len(rows[0]), *body]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in counts.items())


def _mark(holds: bool) -> str:
    return "✓" if holds else "✗ DOES NOT HOLD"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
