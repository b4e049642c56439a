"""`lanewise graduate`: rules, verdicts and the ledger."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lanewise.cli.ledger import LedgerOption, default_ledger
from lanewise.cli.output import JsonFlag, console, print_json, print_table, store_root
from lanewise.errors import UsageError

if TYPE_CHECKING:
    from lanewise.lab.graduate import Case, Graduation
    from lanewise.lab.graduate_evidence import Found
    from lanewise.lab.graduate_replay import Attempt
    from lanewise.lab.ledger_file import LedgerFile
    from lanewise.lane.ledger import LedgerEntry

EXIT_INVALID = 3
EXIT_INCONCLUSIVE = 4
QUIET_SECONDS = 2.0
"""Reading shorter than this says nothing."""


def register(app: typer.Typer) -> None:
    """Add this verb group to the command line."""
    app.command("graduate", short_help="Turn twice proven decisions into defaults of train.")(
        graduate
    )


def graduate(
    features: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FEATURE]...", help="Features to look at.", show_default="all"),
    ] = None,
    stores: Annotated[
        list[str] | None,
        typer.Option(
            "--store", help="Store of campaigns; repeat for several.", show_default=".lanewise"
        ),
    ] = None,
    ledger: LedgerOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the ledger that would be written, and write nothing."
        ),
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the ledger's entries, evidence and age.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn decisions into defaults: five rules, a confirmation on another day, and the ledger that train reads.

    Run it after campaigns of `lanewise ablate`; `--dry-run` changes nothing and prints for every decision which rule it
    passes or fails, with the receipt that shows it and what is still missing.

    A feature graduates on a lane when two campaigns of different UTC days (and different devices, where the stores
    know several of the machine class) find it FASTER and keep five rules: R1 it takes at least 1 % of the step and
    runs in every one; R2 a broad fusion was measured against the narrow one; R3 it is reached only through an op table
    or a declared switch; R4 it is no tax; R5 its receipts are complete, comparable, exactly named, and memory,
    losses and goodput hold. SLOWER twice switches off what is on by its stance. Two later campaigns of different days
    that do not find the effect again demote an entry. The two campaigns lie 6 hours apart or more and hold measurements of
    their own.

    A device is a card's UUID; on a CPU it is an installation of the system, and a boot alone shows none. Where two lanes of a model agree, it speaks for the model.

    What people wrote into the ledger stays as it is, and what they named is left to them.

    Exit codes: 0 something stands in the ledger, 3 evidence is incomplete or cannot be read, 4 nothing has graduated.
    """
    from lanewise.lab.ledger_file import locked, read_ledger, write_ledger

    roots = [store_root(store) for store in stores or ()] or [store_root(None)]
    path = ledger or default_ledger(roots[0])
    if show:
        _show(path, as_json=as_json)
        return
    chosen = _known(features or [])
    found = _read(roots, chosen)
    with contextlib.nullcontext() if dry_run else locked(path):
        before = read_ledger(path)
        outcome = _outcome(found, before)
        text = before.composed(outcome.entries, outcome.taxes)
        changed = text != before.text if dry_run else write_ledger(path, text, before)
    if as_json:
        print_json(
            _document(
                found, outcome, before, path, text, changed=changed, dry_run=dry_run, chosen=chosen
            )
        )
    else:
        _print(found, outcome, before, path, text, changed=changed, dry_run=dry_run, chosen=chosen)
    code = _exit_code(found, outcome)
    if code:
        raise typer.Exit(code)


def _known(features: list[str]) -> list[str]:
    from lanewise.lane.resolve import find_feature

    return [find_feature(key).key for key in features]


def _read(roots: list[str], features: list[str]) -> Found:
    from datetime import UTC, datetime

    from lanewise.lab.graduate_evidence import read_evidence

    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return read_evidence(roots, now=now, features=features, tell=_teller(time.monotonic))


def _teller(clock: Callable[[], float]) -> Callable[[int, int, str], None]:
    """Progress on stderr, at most one line in `QUIET_SECONDS`."""
    start = said = clock()

    def tell(done: int, total: int, name: str) -> None:
        nonlocal said
        if clock() - said < QUIET_SECONDS:
            return
        said = clock()
        left_seconds = (said - start) / max(done, 1) * (total - done)
        sys.stderr.write(f"read {done}/{total} campaigns, now {name}  ETA {left_seconds:.0f} s\n")

    return tell


def _outcome(found: Found, before: LedgerFile) -> Graduation:
    from lanewise.lab.graduate import graduate as apply

    return apply(found.evidence, entries=before.entries, taxes=before.taxes, devices=found.devices)


def _exit_code(found: Found, outcome: Graduation) -> int:
    if any(entry.demoted is None for entry in outcome.entries):
        return 0
    broken = any(
        case.result == "refused" and case.attempts[-1].evidence.missing for case in outcome.cases
    )
    return EXIT_INVALID if broken or found.problems else EXIT_INCONCLUSIVE


def _document(
    found: Found,
    outcome: Graduation,
    before: LedgerFile,
    path: Path,
    text: str,
    *,
    changed: bool,
    dry_run: bool,
    chosen: list[str],
) -> dict[str, Any]:
    return {
        "ledger": str(path),
        "changed": changed,
        "dry_run": dry_run,
        "text": text,
        "cases": [_case_document(case) for case in outcome.cases],
        "entries": list(outcome.entries),
        "taxes": list(outcome.taxes),
        "withdrawn": list(outcome.withdrawn),
        "kept_unseen": _unseen(outcome, chosen),
        "left_to_hand": sorted(_left_to_hand(outcome, before)),
        "problems": found.problems,
    }


def _case_document(case: Case) -> dict[str, Any]:
    return {
        "feature": case.feature,
        "lane": {"name": case.lane_name, "digest": case.lane_digest},
        "machine_class": case.machine_class,
        "result": case.result,
        "text": case.text,
        "decisions": [
            {
                "decision": attempt.evidence.cited,
                "days": list(attempt.evidence.days),
                "verdict": attempt.evidence.decision.verdict.value,
                "passes": attempt.passes,
                "missing": list(attempt.evidence.missing),
                "rules": [{**asdict(rule), "title": rule.title} for rule in attempt.rules],
            }
            for attempt in case.attempts
        ],
    }


def _print(
    found: Found,
    outcome: Graduation,
    before: LedgerFile,
    path: Path,
    text: str,
    *,
    changed: bool,
    dry_run: bool,
    chosen: list[str],
) -> None:
    out = console()

    def say(line: str) -> None:
        out.print(line, markup=False, soft_wrap=True)

    for case in outcome.cases:
        say(
            f"{case.feature} · {case.lane_name} · {case.machine_class}  {case.result.upper()}: {case.text}"
        )
        *earlier, newest = case.attempts
        for attempt in earlier:
            say(f"  {_headline(attempt)}")
        say(f"  {_headline(newest)}")
        for rule in newest.rules:
            mark = {True: "pass", False: "FAIL", None: "n/a "}[rule.ok]
            shown = ", ".join(_short(name) for name in rule.shown_by[:2])
            say(f"    {mark}  {rule.rule} {rule.title}: {rule.text}  [{shown}]")
    for line in _notes(found, outcome, before, path, chosen):
        say(line)
    if not outcome.cases:
        say("no campaign measured a feature; run `lanewise ablate LANE` on two days")
    if dry_run:
        say(f"\n{path} would {'become' if changed else 'stay'}:")
        say(text or "(empty)")
    else:
        say(f"ledger  {path}: {'written' if changed else 'unchanged'}")


def _notes(
    found: Found, outcome: Graduation, before: LedgerFile, path: Path, chosen: list[str]
) -> Iterator[str]:
    for problem in found.problems:
        yield f"not counted: {problem}"
    for entry in _unseen(outcome, chosen):
        yield (
            f"kept unseen: {entry.feature} = {entry.state} on {_holds_for(entry)}; not all of its decisions are in the "
            f"stores read ({', '.join(entry.evidence)}): name the store that holds them with --store"
        )
    for entry in outcome.withdrawn:
        yield f"withdrawn: {entry.feature} = {entry.state}; its evidence no longer earns it"
    for key in sorted(_left_to_hand(outcome, before)):
        yield (
            f"left to you: {key} is written by hand in {path}; remove that line to let graduate write it"
        )


def _unseen(outcome: Graduation, chosen: list[str]) -> list[LedgerEntry]:
    """Entries that nothing read here can confirm, of the features asked about."""
    return [entry for entry in outcome.unseen if not chosen or entry.feature in chosen]


def _headline(attempt: Attempt) -> str:
    decision = attempt.evidence.decision
    days = attempt.evidence.days
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    failed = ", ".join(rule.rule for rule in attempt.rules if rule.ok is False)
    word = "passes" if attempt.passes else f"fails {failed}" if failed else "earns no state"
    return f"{decision.decision_id} ({when}) {decision.verdict.value}: {word}"


def _short(name: str) -> str:
    kind, _, digits = name.partition(":")
    return f"receipt {digits[:12]}" if kind == "sha256" else name


def _left_to_hand(outcome: Graduation, before: LedgerFile) -> frozenset[str]:
    made: Iterable[str] = [entry.feature for entry in outcome.entries]
    return before.by_hand & {*made, *(tax.feature for tax in outcome.taxes)}


def _show(path: Path, *, as_json: bool) -> None:
    from datetime import UTC, datetime

    from lanewise.lane.config import load_config

    if not path.exists():
        raise UsageError(
            f"no ledger {path}; `lanewise graduate` writes one, or name it with --ledger"
        )
    config = load_config(path)
    today = datetime.now(UTC).date().isoformat()
    rows = [(entry, _age_days(entry, today), _standing(entry)) for entry in config.ledger.entries]
    if as_json:
        print_json(
            {
                "ledger": str(path),
                "digest": config.ledger.digest,
                "entries": [
                    {**entry.model_dump(mode="json"), "age_days": age, "standing": standing}
                    for entry, age, standing in rows
                ],
                "taxes": list(config.taxes),
            }
        )
        return
    print_table(
        ("feature", "state", "holds for", "machine", "effect", "age", "standing", "evidence"),
        (
            (
                entry.feature,
                entry.state,
                _holds_for(entry),
                entry.scope.machine_class + (", single device" if entry.single_device else ""),
                _effect(entry),
                "–" if age is None else f"{age} d",
                standing,
                ", ".join(entry.evidence),
            )
            for entry, age, standing in rows
        ),
        title=f"{path} · {config.ledger.digest}",
    )
    for tax in config.taxes:
        typer.echo(
            f"tax {tax.feature} = {tax.state}: {tax.verdict or 'no verdict'}, last {tax.last or '–'}"
        )


def _holds_for(entry: LedgerEntry) -> str:
    names = ", ".join(entry.lane_names)
    if entry.scope.models:
        return f"every lane of the model of {names}" if names else "a model"
    return names or ", ".join(digest[:15] for digest in entry.scope.lanes)


def _effect(entry: LedgerEntry) -> str:
    if entry.effect is None:
        return "–"
    low, high = entry.effect.interval
    return f"{entry.effect.step_time_ratio - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}]"


def _standing(entry: LedgerEntry) -> str:
    """`speaks`, or why not on this machine as it is today."""
    from lanewise.receipts.versions import present_version

    return entry.silenced(present_version, {}) or "speaks"


def _age_days(entry: LedgerEntry, today: str) -> int | None:
    from datetime import date

    try:
        return (date.fromisoformat(today) - date.fromisoformat(entry.date or "")).days
    except ValueError:
        return None
