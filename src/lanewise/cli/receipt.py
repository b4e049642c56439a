"""`lanewise receipt`: list, show, validate, diff and reindex the receipts of a store; pack and unpack campaigns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lanewise.cli import receipt_archive, receipt_list
from lanewise.cli.output import JsonFlag, StoreOption, print_json, print_table, store_root
from lanewise.errors import UsageError

if TYPE_CHECKING:
    from lanewise.measure.loss_curve import LossComparison
    from lanewise.receipts.schema import RunReceipt
    from lanewise.receipts.store import Store

EXIT_INVALID = 3
MAX_VALUE_WIDTH = 72

Reference = Annotated[
    str, typer.Argument(help="Receipt id, a unique beginning of one, or a path.", metavar="RECEIPT")
]


def register(app: typer.Typer) -> None:
    """Add this verb group to the command line."""
    group = typer.Typer(
        name="receipt",
        help="Records of runs: list, show, validate, diff, pack, unpack.",
        no_args_is_help=True,
    )
    group.command("list")(receipt_list.list_receipts)
    for command in (show, validate, diff, reindex, receipt_archive.pack, receipt_archive.unpack):
        group.command(command.__name__)(command)
    app.add_typer(group)


def show(
    reference: Reference,
    view: Annotated[
        str | None,
        typer.Option(
            "--view",
            metavar="NAME",
            help="A narrow view: optimization, gpu-profile, compile-runtime, attention-backend, moe-losses, "
            "expert-routing, goodput, utilization, failure.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="RECEIPT",
            help="Compare with this receipt; for --view optimization and gpu-profile.",
        ),
    ] = None,
    may_differ: Annotated[
        list[str] | None,
        typer.Option(
            "--may-differ",
            metavar="FEATURE",
            help="A feature the two may differ in; may be repeated.",
        ),
    ] = None,
    store: StoreOption = None,
    json: JsonFlag = False,
) -> None:
    """Show one receipt: asked, observed, how long, whether it counts.

    With --view, just the fields of one question; docs/VIEWS.md says what each field is.
    """
    from lanewise.receipts.summary import summary_lines

    place = _store(store)
    if view is not None:
        _show_view(place, reference, view, base, tuple(may_differ or ()), json=json)
        return
    if base is not None or may_differ:
        raise UsageError("--base and --may-differ need --view optimization or gpu-profile")
    if json:
        print_json(place.receipt_document(reference))
        return
    for line in summary_lines(place.read_receipt(reference)):
        typer.echo(line)


def validate(
    references: Annotated[
        list[str] | None,
        typer.Argument(
            help="Receipt ids, files or store folders; nothing means the whole store.",
            metavar="[RECEIPT]...",
        ),
    ] = None,
    store: StoreOption = None,
    json: JsonFlag = False,
) -> None:
    """Check schema, identity, seals, sidecars and closure of goodput. Exit 3 if anything is invalid."""
    num_checked = 0
    invalid: list[tuple[str, list[str]]] = []
    for location, faults in _all_faults(references or [], _store(store)):
        num_checked += 1
        if faults:
            invalid.append((location, faults))
            if not json:
                typer.echo(f"INVALID {location}: {'; '.join(faults)}")
    if json:
        print_json(
            {
                "checked": num_checked,
                "invalid": [
                    {"location": location, "faults": faults} for location, faults in invalid
                ],
            }
        )
    else:
        files = "file" if num_checked == 1 else "files"
        typer.echo(f"{num_checked} {files} checked, {len(invalid)} invalid")
    if invalid:
        raise typer.Exit(EXIT_INVALID)


def diff(
    first: Reference, second: Reference, store: StoreOption = None, json: JsonFlag = False
) -> None:
    """Say whether two receipts may meet in one test. Prints the fields in which they differ."""
    from dataclasses import asdict

    from lanewise.receipts.compare import declared_features, unmatched_starts
    from lanewise.receipts.compare import diff as differences_of

    place = _store(store)
    a, b = place.read_receipt(first), place.read_receipt(second)
    differences = differences_of(a, b)
    blocking = [difference for difference in differences if difference.blocks]
    declared = sorted(declared_features(a, b))
    unmatched = unmatched_starts(a, b)
    losses = None if unmatched else _losses(place, a, b)
    if json:
        print_json(
            {
                "a": a.receipt_id,
                "b": b.receipt_id,
                "comparable": not blocking,
                "declared": declared,
                "differences": [
                    {"field": d.field, "a": d.a, "b": d.b, "blocks": d.blocks} for d in differences
                ],
                "losses": None if losses is None else asdict(losses),
                "losses_not_compared": list(unmatched),
            }
        )
        return
    allowed = f" (may differ in {', '.join(declared)})" if declared else ""
    if blocking:
        fields = ", ".join(difference.field for difference in blocking)
        typer.echo(f"not comparable{allowed}: they differ in {fields}")
    else:
        typer.echo(f"comparable{allowed}")
    for receipt in (a, b):
        if receipt.outcome.validity == "invalid":
            typer.echo(f"{receipt.receipt_id} is invalid and counts for nothing")
    if unmatched:
        typer.echo(f"losses are not compared: {'; '.join(unmatched)}")
    if losses is not None:
        typer.echo(_losses_in_words(losses))
    print_table(
        ("", "field", "a", "b"),
        [("✗" if d.blocks else "", d.field, _value(d.a), _value(d.b)) for d in differences],
    )


def reindex(store: StoreOption = None, json: JsonFlag = False) -> None:
    """Rebuild the index from the files. Nothing is ever lost by it.

    Temporary files that killed writers left are removed when they are older than a day.
    """
    import time
    from dataclasses import asdict

    from lanewise.receipts.files import remove_abandoned
    from lanewise.receipts.index import Index

    place = _store(store)
    num_abandoned = remove_abandoned(place.root, now_seconds=time.time())
    index = Index(place)
    done = index.reindex()
    unreadable = [
        *index.query(kind="receipt", limit=0).unreadable,
        *index.query(kind="decision", limit=0).unreadable,
    ]
    if json:
        print_json({**asdict(done), "num_abandoned": num_abandoned, "unreadable": unreadable})
        return
    where = done.path or "memory: the store cannot be written"
    typer.echo(
        f"receipts {done.num_receipts}, decisions {done.num_decisions}, "
        f"unreadable {done.num_unreadable}: indexed in {where}"
    )
    if num_abandoned:
        left = "file" if num_abandoned == 1 else "files"
        typer.echo(f"removed {num_abandoned} temporary {left} that killed writers left")
    for error in unreadable:
        typer.echo(f"unreadable: {error}", err=True)


def _store(option: str | None) -> Store:
    from lanewise.receipts.store import Store

    return Store(store_root(option))


def _show_view(
    store: Store,
    reference: str,
    name: str,
    base: str | None,
    may_differ: tuple[str, ...],
    *,
    json: bool,
) -> None:
    from lanewise.receipts.views.base import Source
    from lanewise.receipts.views.registry import VIEWS
    from lanewise.receipts.views.text import view_lines

    entry = VIEWS.get(name)
    if entry is None:
        raise UsageError(f"no view '{name}'; use {', '.join(VIEWS)}")
    if (base is not None or may_differ) and not entry.takes_base:
        takers = " or ".join(key for key, each in VIEWS.items() if each.takes_base)
        raise UsageError(
            f"view '{name}' compares nothing; --base and --may-differ are for {takers}"
        )
    other = None if base is None else store.read_receipt(base)
    view = entry.build(
        Source(
            receipt=store.read_receipt(reference),
            steps=store.read_steps(reference),
            base=other,
            base_steps=None if base is None else store.read_steps(base),
            may_differ=may_differ,
        )
    )
    if json:
        print_json(view)
        return
    for line in view_lines(view):
        typer.echo(line)


def _losses(store: Store, a: RunReceipt, b: RunReceipt) -> LossComparison | None:
    """Losses of two runs at equal steps and at equal time; None unless both kept their steps from step 0."""
    from lanewise.errors import ReceiptError
    from lanewise.measure.loss_curve import compare_losses

    try:
        first, second = (store.read_steps(receipt.receipt_id) for receipt in (a, b))
    except ReceiptError as error:
        typer.echo(f"losses are not compared: {error}", err=True)
        return None
    if first is None or second is None or not first.step[:1] == second.step[:1] == (0,):
        return None
    return compare_losses(first, second)


def _losses_in_words(losses: LossComparison) -> str:
    from lanewise.receipts.summary import format_seconds

    steps, time = losses.equal_steps, losses.equal_time
    return (
        f"loss after {losses.num_steps} steps {steps.control:.4f} and {steps.treated:.4f} ({steps.delta:+.4f}); after "
        f"{format_seconds(losses.seconds)} of steps {time.control:.4f} and {time.treated:.4f} ({time.delta:+.4f})"
    )


def _all_faults(references: list[str], store: Store) -> Iterator[tuple[str, list[str]]]:
    from pathlib import Path

    from lanewise.errors import ReceiptError
    from lanewise.lab.campaign import working_file_faults
    from lanewise.receipts.store import Store as StoreClass
    from lanewise.receipts.validate import record_file_faults, store_faults

    if not references:
        yield from store_faults(store)
        yield from working_file_faults(store.root)
    for reference in references:
        if Path(reference).is_dir():
            yield from store_faults(StoreClass(reference))
            yield from working_file_faults(reference)
            continue
        try:
            location = store.locate_receipt(reference)
        except ReceiptError as error:
            yield reference, [str(error)]
        else:
            yield location, record_file_faults(location, store)


def _value(value: Any) -> str:
    import json

    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE_WIDTH else text[: MAX_VALUE_WIDTH - 1] + "…"
