"""Documents of the lab to spoil: plans, journals, a ledger and an archive, of every version and kind of entry."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lanewise.lab.journal import BlockLost, Stopped, journal_line
from lanewise.lab.ledger_file import read_ledger
from lanewise.lab.plan import PLAN_SCHEMA_VERSION, CampaignPlan
from lanewise.lane.config import parse_config
from lanewise.lane.sources import parse_toml
from lanewise.receipts.archive import write_archive
from lanewise.receipts.schema import Producer
from tests.receipts.examples import complete, sample
from tools.proofs._mutate import odd_json_value, spoil_bytes, spoil_tables

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "receipts" / "golden"
LAB_GOLDEN = ROOT / "tests" / "lab" / "golden"

CONFIG = """\
[speed_defaults.fused_moe]
state = "on"
scope = { lanes = ["sha256:9c2f", "sha256:71aa"], machine_class = "h100-sxm" }
evidence = ["decision:2026-11-23", "decision:2026-11-25"]
effect = { step_time_ratio = 0.874, interval = [0.869, 0.880] }

[speed_defaults]
fused_mamba = true

[experimental_taxes.stp]
state = "off"
budget_ratio = 1.01
last = "decision:2026-11-23"

[observability]
goodput = true
"""


def plans_of_versions() -> list[bytes]:
    """One of 1.0, and one of the version written now without an empty field."""
    old = (LAB_GOLDEN / "plan-1.0.json").read_bytes()
    new = complete(CampaignPlan.model_validate_json(old), schema_version=PLAN_SCHEMA_VERSION)
    return [old, new.model_dump_json(indent=2).encode()]


def journals_of_versions() -> list[bytes]:
    """One of 1.0, and one with every kind of line that is written now."""
    old = (LAB_GOLDEN / "journal-1.0.jsonl").read_bytes()
    lines = [
        {**sample(BlockLost), "event": "discarded", "failure_family": "timeout"},
        {**sample(Stopped), "event": "stopped"},
    ]
    # A sealed line is refused wherever it is spoiled; the ones without a seal let a spoiled shape come further.
    return [
        old,
        old.splitlines(keepends=True)[0] + b"".join(json_text(line) + b"\n" for line in lines),
        b"".join(journal_line(entry) for entry in (BlockLost(**lines[0]), Stopped(**lines[1]))),
    ]


def written_ledger() -> bytes:
    """A ledger with a part of people and one below the mark."""
    empty = read_ledger(Path("no such ledger"))
    config = parse_config(parse_toml(CONFIG, name="config"))
    return ("# ours\n" + empty.composed(config.ledger.entries, config.taxes)).encode()


def spoiled_archive(scratch: Path) -> Callable[[random.Random], bytes]:
    """An archive spoiled as it lies on a disk, or before it is compressed, or with another manifest."""
    root = scratch / "packed"
    names = {
        "decisions/d.json": (GOLDEN / "decision-1.2.json").read_bytes(),
        "campaigns/c/plan.json": plans_of_versions()[-1],
    }
    for name, content in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    target = scratch / "packed.tar.gz"
    producer = Producer(name="lanewise", version="0.1.0")
    manifest = write_archive(target, root, list(names), campaigns=["c"], producer=producer)
    whole = target.read_bytes()
    document = json.loads(manifest.model_dump_json())

    def spoil(rng: random.Random) -> bytes:
        kind = rng.randrange(3)
        if kind == 0:
            return spoil_bytes(whole, rng)
        if kind == 1:
            return gzip.compress(spoil_bytes(gzip.decompress(whole), rng), 1, mtime=0)
        content = json_text(spoil_tables(document, rng, odd_json_value))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, each in (("manifest.json", content), *sorted(names.items())):
                member = tarfile.TarInfo(name)
                member.size = len(each)
                tar.addfile(member, io.BytesIO(each))
        return gzip.compress(packed.getvalue(), 1, mtime=0)

    return spoil


def json_text(value: Any) -> bytes:
    """A value as a document; what is no Unicode text stays as it is."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
