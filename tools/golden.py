"""Freeze the golden documents of the versions that this program writes: `python -m tools.golden`, once per release.

For every schema that `receipts.jsonschema` generates, one document without an empty field goes to `tests/receipts/golden/`.
Documents of released versions are never written again: it refuses to change a file unless `--again` names it, which is
right only while its version has not been released.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from lanewise.receipts.store import json_bytes
from tests.receipts.examples import EXAMPLES

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "receipts" / "golden"
RELEASED = ("steps-1.1.json",)
"""Still written, and frozen from a real run when they were released."""


def documents() -> Mapping[str, bytes]:
    """File name → content, for every version that is written now."""
    return {name: json_bytes(record) for name, record in EXAMPLES.items() if name not in RELEASED}


def main(arguments: list[str] | None = None, folder: Path = GOLDEN) -> int:
    """Write what is missing; returns 1 where a file holds something else."""
    parser = argparse.ArgumentParser(description="Freeze golden documents.")
    parser.add_argument(
        "--again",
        action="append",
        default=[],
        metavar="FILE",
        help="replace this one, not yet released",
    )
    again = parser.parse_args(arguments).again
    refused = 0
    for name, content in documents().items():
        path = folder / name
        if path.exists() and path.read_bytes() != content and name not in again:
            sys.stderr.write(f"{path}: holds another document; `--again {name}` replaces it\n")
            refused = 1
        elif not path.exists() or name in again:
            path.write_bytes(content)
            sys.stdout.write(f"{path}\n")
    return refused


if __name__ == "__main__":
    sys.exit(main())
