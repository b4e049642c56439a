"""The committed JSON Schemas are those of the models, and stored records satisfy them."""

import json
from pathlib import Path

import jsonschema
import pytest

from lanewise.receipts.jsonschema import DEFAULT_FOLDER, FROZEN, SCHEMAS, json_schema, write_schemas
from lanewise.receipts.schema import Record
from tests.receipts.examples import EXAMPLES

GOLDEN_FOLDER = Path(__file__).parent / "golden"


def committed(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((DEFAULT_FOLDER / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_committed_schemas_are_generated(tmp_path: Path) -> None:
    for path in write_schemas(tmp_path):
        kept = (DEFAULT_FOLDER / path.name).read_text(encoding="utf-8")
        assert path.read_text(encoding="utf-8") == kept, "run `make schema` and commit schemas/"
    assert {path.name for path in DEFAULT_FOLDER.iterdir()} == {*SCHEMAS, *FROZEN}


@pytest.mark.parametrize("name", SCHEMAS)
def test_records_as_stored_satisfy_their_schema(name: str) -> None:
    validator = committed(name)
    document = EXAMPLES[name].model_dump(mode="json")
    validator.validate(document)
    assert not validator.is_valid({**document, "surprise": 1})
    assert not validator.is_valid({})


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN_FOLDER.iterdir()))
def test_a_golden_document_satisfies_the_schema_of_its_version(name: str) -> None:
    validator = committed(name)
    document = json.loads((GOLDEN_FOLDER / name).read_text(encoding="utf-8"))
    validator.validate(document)
    assert not validator.is_valid({**document, "surprise": 1})
    assert not validator.is_valid({**document, "schema_version": 1})


def test_a_schema_names_its_dialect() -> None:
    assert json_schema(Record)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
