"""What lanewise itself costs, against its limits: `python -m benchmarks.overheads [--write]`.

Exits 1 if a limit is missed. `--write` keeps the figures in `benchmarks/results/<date>-overheads.json`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks import Figure, goodput_cost, receipt_index, report

NUM_STARTS = 5
HELP = "from lanewise.cli.main import main; main(['--help'])"


def help_start() -> list[Figure]:
    """Wall time of `lanewise --help` in a fresh process."""
    samples = []
    for _ in range(NUM_STARTS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", HELP], check=True, stdout=subprocess.DEVNULL)
        samples.append(time.perf_counter() - start)
    return [
        Figure(
            name="lanewise --help",
            value=statistics.median(samples),
            limit=0.3,
            unit="s",
            how=f"median of {NUM_STARTS} processes",
        )
    ]


def goodput_accounting() -> list[Figure]:
    """Spans and the series entry of one step."""
    return [
        Figure(
            name="goodput accounting of a step",
            value=goodput_cost.microseconds_per_step(goodput_cost.spans_and_series, enabled=True),
            limit=goodput_cost.BUDGET_MICROSECONDS,
            unit="µs",
            how=f"median of {goodput_cost.NUM_REPEATS} × {goodput_cost.NUM_STEPS:,} steps",
        )
    ]


BENCHMARKS: tuple[Callable[[], list[Figure]], ...] = (
    help_start,
    goodput_accounting,
    receipt_index.figures,
)
"""Every overhead with a limit, in the order of the table."""


def main() -> int:
    """Run all, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    figures = [figure for benchmark in BENCHMARKS for figure in benchmark()]
    return report(figures, name="overheads", write=arguments.write)


if __name__ == "__main__":
    sys.exit(main())
