"""Kinds of documents a person can hand to the program: how each is spoiled, and all that is done to one that is accepted.

`check` returns whether the document was accepted. It raises a `LanewiseError` to refuse, `Mistake` when an accepted
document does not survive being written and read again, and anything else is a defect by itself.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import random
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lanewise.dash.rows import columns, rows
from lanewise.dash.summary import header_lines, verdict_sentence
from lanewise.errors import LaneError
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.journal import journal_line
from lanewise.lab.ledger_file import read_ledger
from lanewise.lane.built import require_built
from lanewise.lane.config import parse_config
from lanewise.lane.digest import lane_digest
from lanewise.lane.flops import lane_flops
from lanewise.lane.load import draft_of, load_lane
from lanewise.lane.names import canonical_name
from lanewise.lane.resolve import resolve
from lanewise.lane.schema import Lane
from lanewise.lane.sources import Document, parse_toml, parse_yaml, require_shallow
from lanewise.lane.validate import validate
from lanewise.receipts.archive import read_archive
from lanewise.receipts.ceilings import CeilingRecord, cite
from lanewise.receipts.decision import CampaignRecord, Decision
from lanewise.receipts.document import parse_receipt, parse_record, parse_steps, receipt_id_of
from lanewise.receipts.index import Index
from lanewise.receipts.jsonschema import SCHEMAS
from lanewise.receipts.promote import promote
from lanewise.receipts.schema import Record, RunReceipt, StepSeries
from lanewise.receipts.store import Store, json_bytes
from lanewise.receipts.summary import summary_lines
from lanewise.receipts.validate import receipt_faults
from lanewise.receipts.views.base import Source
from lanewise.receipts.views.registry import VIEWS
from lanewise.receipts.views.text import view_lines
from tests.receipts.factory import make_body
from tools.proofs._lab_documents import (
    CONFIG,
    GOLDEN,
    ROOT,
    journals_of_versions,
    json_text,
    plans_of_versions,
    spoiled_archive,
    written_ledger,
)
from tools.proofs._mutate import odd_json_value, odd_toml_value, spoil_bytes, spoil_tables

PRESETS = ROOT / "src" / "lanewise" / "lane" / "presets"
MACHINE_CLASS = "cpu-x86_64-2c"

YAML = """\
speed_defaults:
  fused_mamba: true
  backend_dispatch: auto
experimental_taxes:
  stp: false
observability:
  goodput: true
"""


class Mistake(Exception):
    """An accepted document came back different, or was misread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of document.

    Attributes:
        name: what it is.
        count: documents tried at scale 1.
        spoil: generator → a spoiled document.
        check: reads a document, in a folder of its own.
    """

    name: str
    count: int
    spoil: Callable[[random.Random], bytes]
    check: Callable[[bytes, Path], bool]


def kinds(scratch: Path) -> tuple[Kind, ...]:
    """All kinds.

    Args:
        scratch: folder for files that a kind needs before the first check.
    """
    presets = [path.read_bytes() for path in sorted(PRESETS.glob("*.toml"))]
    plans = plans_of_versions()
    journals = journals_of_versions()
    return (
        Kind(name="lane text", count=30_000, spoil=_bytes_of(presets), check=_check_lane_text),
        Kind(name="lane tables", count=25_000, spoil=_lane_tables, check=_check_lane_tables),
        Kind(name="lane override", count=4_000, spoil=_override, check=_check_override),
        Kind(
            name="configuration",
            count=5_000,
            spoil=_bytes_of([CONFIG.encode()]),
            check=_check_config,
        ),
        Kind(
            name="configuration (YAML)",
            count=1_500,
            spoil=_bytes_of([YAML.encode()]),
            check=_check_yaml,
        ),
        Kind(
            name="receipt", count=10_000, spoil=_bytes_of(_golden("receipt")), check=_check_receipt
        ),
        Kind(name="receipt, hashed anew", count=10_000, spoil=_rehashed, check=_check_receipt),
        *(
            Kind(
                name=name,
                count=count,
                spoil=_either(_golden(name)),
                check=functools.partial(_check_record, model),
            )
            for name, (model, count) in _records().items()
        ),
        Kind(name="plan", count=4_000, spoil=_either(plans), check=_check_plan),
        Kind(name="journal", count=4_000, spoil=_bytes_of(journals), check=_check_journal),
        Kind(
            name="ledger",
            count=4_000,
            spoil=_bytes_of([written_ledger(), CONFIG.encode()]),
            check=_check_ledger,
        ),
        Kind(
            name="archive file", count=3_000, spoil=spoiled_archive(scratch), check=_check_archive
        ),
        Kind(name="index", count=500, spoil=_index(scratch), check=_check_index),
    )


def _records() -> dict[str, tuple[type[Record], int]]:
    """Kinds of records other than receipts, with how many to try: every one that has a golden document."""
    counts = {"decision": 5_000, "campaign": 5_000, "steps": 4_000}
    found = {name.partition("-")[0]: model for name, model in SCHEMAS.items()}
    return {
        name: (model, counts.get(name, 2_000))
        for name, model in found.items()
        if model is not RunReceipt and _golden(name)
    }


def _golden(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(GOLDEN.glob(f"{name}-*.json"))]


def _bytes_of(bases: list[bytes]) -> Callable[[random.Random], bytes]:
    return lambda rng: spoil_bytes(rng.choice(bases), rng)


def _either(bases: list[bytes]) -> Callable[[random.Random], bytes]:
    """Bytes spoiled, or the parsed object spoiled and written again."""
    parsed = [json.loads(base) for base in bases]

    def spoil(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return spoil_bytes(rng.choice(bases), rng)
        return json_text(spoil_tables(rng.choice(parsed), rng, odd_json_value))

    return spoil


def _rehashed(rng: random.Random) -> bytes:
    """A receipt that is wrong and says so nowhere: its id fits its spoiled content."""
    document = spoil_tables(json.loads(rng.choice(_golden_receipts())), rng, odd_json_value)
    # What has no canonical form no writer could have hashed.
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        document["receipt_id"] = receipt_id_of(document)
    return json_text(document)


@functools.cache
def _golden_receipts() -> tuple[bytes, ...]:
    return tuple(_golden("receipt"))


def _lane_tables(rng: random.Random) -> bytes:
    """Tables as a TOML parser returns them, which may hold dates, NaN and integers of any size."""
    return pickle.dumps(spoil_tables(rng.choice(_preset_tables()), rng, odd_toml_value))


@functools.cache
def _preset_tables() -> tuple[dict[str, Any], ...]:
    return tuple(tomllib.loads(path.read_text("utf-8")) for path in sorted(PRESETS.glob("*.toml")))


def _override(rng: random.Random) -> bytes:
    base = rng.choice(
        (
            b"batch.micro_batch_size=8",
            b"ops.ssm_scan=chunked.torch",
            b"model.moe={ num_experts = 4, top_k = 2 }",
            b"model.mtp=none",
            b"optimizer.learning_rate=3e-4",
            b"model.num_layers=1000000000",
        )
    )
    return spoil_bytes(base, rng)


def _check_lane_text(content: bytes, folder: Path) -> bool:
    path = folder / "lane.toml"
    path.write_bytes(content)
    return _use_lane(load_lane(str(path), folder=folder))


def _check_lane_tables(content: bytes, folder: Path) -> bool:
    tables = pickle.loads(content)  # written by _lane_tables
    require_shallow(tables, "tables")
    draft = draft_of(Document(name="tables", tables=tables, lines={}), "tables", folder=folder)
    lane, problems = validate(draft)
    if problems or lane is None:
        raise LaneError(problems)
    return _use_lane(lane)


def _check_override(content: bytes, _folder: Path) -> bool:
    return _use_lane(load_lane("nam56r-tiny", [content.decode("utf-8", "replace")]))


def _use_lane(lane: Lane) -> bool:
    """What `lane show --resolved` and the start of a run do with a lane."""
    written = lane.model_dump_json()
    again = Lane.model_validate_json(written, strict=True)
    if again != lane or lane_digest(again) != lane_digest(lane):
        raise Mistake("the lane came back different from JSON")
    lane_flops(lane)
    canonical_name(lane, machine_class=MACHINE_CLASS, mode="train")
    resolve(lane, machine_class=MACHINE_CLASS, device_type="cpu", mode="train")
    require_built(lane)
    return True


def _check_config(content: bytes, _folder: Path) -> bool:
    return _use_config(parse_toml, content)


def _check_yaml(content: bytes, _folder: Path) -> bool:
    return _use_config(parse_yaml, content)


def _use_config(parse: Callable[..., Any], content: bytes) -> bool:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return False  # files that are not UTF-8 are tried as lanes
    config = parse_config(parse(text, name="config"))
    if type(config).model_validate_json(config.model_dump_json()) != config:
        raise Mistake("the configuration came back different from JSON")
    return True


def _check_receipt(content: bytes, _folder: Path) -> bool:
    receipt = parse_receipt(content, "receipt")
    _same(receipt, parse_receipt(json_bytes(_as_written(content)), "receipt"))
    promote("receipt", receipt.model_dump(mode="json"), f"{receipt.receipt_id[7:]}.json")
    receipt_faults(receipt)
    _printable(summary_lines(receipt))
    for entry in VIEWS.values():
        _printable(view_lines(entry.build(Source(receipt=receipt))))
    return True


def _check_record(model: type[Record], content: bytes, _folder: Path) -> bool:
    if model is StepSeries:
        series = parse_steps(content, "steps")
        _same(series, parse_steps(json_bytes(series), "steps"))
        return True
    record = parse_record(model, content, "record")
    _same(record, parse_record(model, json_bytes(record), "record"))
    if isinstance(record, Decision):
        promote("decision", record.model_dump(mode="json"), f"{record.decision_id}.json")
        _printable([row.cell(column) for row in rows([record]) for column in columns([record])])
    elif isinstance(record, CeilingRecord):
        cite(record, at="2026-11-23T10:00:00Z")
    elif isinstance(record, CampaignRecord):
        _printable([*header_lines(record), verdict_sentence(record, ())])
    return True


def _check_ledger(content: bytes, folder: Path) -> bool:
    path = folder / "ledger.toml"
    path.write_bytes(content)
    found = read_ledger(path)
    found.composed(found.entries, found.taxes)
    return True


def _check_archive(content: bytes, folder: Path) -> bool:
    """Nothing outside of the folder it is unfolded into is touched, whatever the archive says."""
    archive, into = folder / "archive.tar.gz", folder / "unfolded"
    archive.write_bytes(content)
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    before = {path.name for path in folder.iterdir()}
    try:
        manifest = read_archive(archive, into)
        for file in manifest.files:
            if len((into / file.name).read_bytes()) != file.size_bytes:
                raise Mistake(f"{file.name} was accepted with another size")
    finally:
        if {path.name for path in folder.iterdir()} != before:
            raise Mistake("something was written outside of the folder")
    return True


def _check_plan(content: bytes, folder: Path) -> bool:
    (folder / "plan.json").write_bytes(content)
    plan = CampaignFolder(folder).plan()
    (folder / "plan.json").write_bytes(plan.model_dump_json(indent=2).encode())
    _same(plan, CampaignFolder(folder).plan())
    return True


def _check_journal(content: bytes, folder: Path) -> bool:
    (folder / "journal.jsonl").write_bytes(content)
    journal = CampaignFolder(folder).journal
    entries = journal.read()
    (folder / "journal.jsonl").write_bytes(b"")
    for entry in entries:
        with (folder / "journal.jsonl").open("ab") as file:
            file.write(journal_line(entry))
    _same(entries, journal.read())
    return True


def _index(scratch: Path) -> Callable[[random.Random], bytes]:
    store = Store(scratch / "indexed")
    for block in range(3):
        store.write_receipt(make_body({"experiment.block": block}))
    index = Index(store)
    index.refresh()
    content = index.path.read_bytes()
    return lambda rng: spoil_bytes(content, rng)


def _check_index(content: bytes, folder: Path) -> bool:
    """A spoiled index never keeps anybody from an answer, and one made anew is right."""
    store = Store(folder.parent / "indexed")
    path = folder / "index.sqlite"
    path.write_bytes(content)
    index = Index(store, path)
    index.query()
    index.reindex()
    blocks = sorted(row.fields.block or 0 for row in index.query().rows)
    if blocks != [0, 1, 2]:
        raise Mistake(f"a rebuilt index knows the blocks {blocks}, the store has 0, 1 and 2")
    return True


def _as_written(content: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(content)
    return document


def _same(first: object, second: object) -> None:
    if first != second:
        raise Mistake("the document came back different")


def _printable(lines: list[str]) -> None:
    "\n".join(lines).encode("utf-8")
