"""JSON Schema 2020-12 of every record, generated from the models: `python -m lanewise.receipts.jsonschema` writes them.

The schema of an older version stays as it was released.

A test fails when the committed files differ from what is generated here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lanewise.receipts.calibration import CalibrationRecord
from lanewise.receipts.ceilings import CeilingRecord
from lanewise.receipts.decision import CampaignRecord, Decision
from lanewise.receipts.manifest import ArchiveManifest
from lanewise.receipts.record import Digest
from lanewise.receipts.schema import Record, RunReceipt, StepSeries
from lanewise.receipts.seal import SEAL

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMAS: Mapping[str, type[Record]] = {
    "receipt-1.2.json": RunReceipt,
    "decision-1.2.json": Decision,
    "campaign-1.2.json": CampaignRecord,
    "calibration-1.0.json": CalibrationRecord,
    "steps-1.1.json": StepSeries,
    "archive-1.0.json": ArchiveManifest,
    "ceilings-1.0.json": CeilingRecord,
}
FROZEN: tuple[str, ...] = (
    "receipt-1.0.json",
    "decision-1.0.json",
    "campaign-1.0.json",
    "steps-1.0.json",
    "receipt-1.1.json",
    "decision-1.1.json",
    "campaign-1.1.json",
)
"""Schemas of released versions that no model generates any more; receipts of these versions are still read."""
SEALED: frozenset[type[Record]] = frozenset(
    {Decision, CampaignRecord, CalibrationRecord, CeilingRecord}
)
"""Records whose stored documents carry a seal beside the record's own fields (`receipts.seal`)."""
DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "schemas"


def json_schema(model: type[Record]) -> dict[str, Any]:
    """The JSON Schema of a record as it is stored; unknown fields are refused, as by its writer."""
    schema = {"$schema": DIALECT, **model.model_json_schema(mode="serialization")}
    if model in SEALED:
        schema["properties"][SEAL] = TypeAdapter(Digest).json_schema() | {
            "description": "Over the canonical JSON of all other fields; absent in documents before there were seals."
        }
    return schema


def schema_text(model: type[Record]) -> str:
    """The schema as it is committed."""
    return json.dumps(json_schema(model), indent=2, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> list[Path]:
    """Write every schema into a folder and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, model in SCHEMAS.items():
        path = folder / name
        path.write_text(schema_text(model), encoding="utf-8")
        paths.append(path)
    return paths


if __name__ == "__main__":
    for written in write_schemas(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER):
        sys.stdout.write(f"{written}\n")
