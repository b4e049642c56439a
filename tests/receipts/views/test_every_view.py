"""What holds for all views: nulls have reasons, old receipts work, the documented names are the ones in use."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from lanewise.receipts.document import parse_receipt
from lanewise.receipts.record import Record
from lanewise.receipts.schema import RunReceipt
from lanewise.receipts.views.base import Source, View
from lanewise.receipts.views.registry import VIEWS
from lanewise.receipts.views.text import view_lines
from tests.receipts.factory import make_receipt, make_steps

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parents[1] / "golden"
OLD_STORES = sorted((ROOT / "receipts").glob("cpu-*"))
MAY_BE_EMPTY = frozenset(
    {
        "flags",
        "clock_event_reasons",
        "failed_checks",
        "requested",
        "rejected",
        "attention_requested",
    }
)
"""Empty means: there was none of it."""


def receipts() -> dict[str, RunReceipt]:
    found = {"1.2": make_receipt(), "bare": bare()}
    for path in sorted(GOLDEN.glob("receipt-*.json")):
        found[path.stem] = parse_receipt(path.read_bytes(), path.name)
    return found


def bare() -> RunReceipt:
    """A run that was stopped before its first step, with everything switched off."""
    return make_receipt(
        {
            "timing.step_duration_seconds": None,
            "timing.window_duration_seconds": None,
            "throughput.tokens_per_second": None,
            "throughput.tokens_per_second_per_device": None,
            "goodput": None,
            "routing": None,
            "backends": [],
            "lane.layer_pattern": "M",
            "compile.enabled": True,
            "compile.warmup_policy": None,
            "numerics.loss_first": None,
            "numerics.loss_last": None,
            "missing": {
                "timing": "no steps",
                "throughput": "no steps",
                "goodput": "observability.goodput is off",
                "routing": "the lane has no E layers",
                "numerics": "no steps",
                "telemetry": "no GPU",
                "memory": "off",
                "flops": "no ceiling",
                "compile": "not said",
            },
        }
    )


def unexplained(view: View) -> Iterator[str]:
    def walk(value: Any, path: str, key: str) -> Iterator[str]:
        if isinstance(value, Record):
            for name in type(value).model_fields:
                if name not in {"missing"}:
                    inner = f"{path}.{name}" if path else name
                    yield from walk(getattr(value, name), inner, name)
        elif isinstance(value, tuple) and value and isinstance(value[0], Record):
            for position, item in enumerate(value):
                yield from walk(item, f"{path}.{name_of(item, position)}", "")
        elif value is None or (value in ((), {}) and key not in MAY_BE_EMPTY):
            explained = any(path == m or path.startswith(m + ".") for m in view.missing)
            if not explained and not path.startswith("facts."):
                yield path

    return walk(view, "", "")


def name_of(item: Record, position: int) -> str:
    for key in ("op", "layer", "rank", "category"):
        if key in type(item).model_fields:
            return str(getattr(item, key))
    return str(position)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("which", receipts())
def test_every_null_has_a_reason_and_every_view_reads_back(name: str, which: str) -> None:
    receipt = receipts()[which]
    entry = VIEWS[name]
    for steps in (None, make_steps()):
        view = entry.build(Source(receipt=receipt, steps=steps))
        assert type(view) is entry.model
        assert list(unexplained(view)) == []
        assert entry.model.model_validate_json(view.model_dump_json()) == view
        lines = view_lines(view)
        assert lines[0].split() == ["receipt_id", receipt.receipt_id]
        assert all("\n" not in line for line in lines)
        nulls = [path for path in view.missing if "." not in path]
        for field in nulls:
            assert any(view.missing[field] in line for line in lines), field


@pytest.mark.parametrize("name", VIEWS)
def test_receipts_of_released_stores_have_every_view(name: str) -> None:
    for store in OLD_STORES:
        path = next(p for p in sorted(store.rglob("receipts/*/*/*.json")) if "steps" not in p.name)
        receipt = parse_receipt(path.read_bytes(), str(path))
        assert list(unexplained(VIEWS[name].build(Source(receipt=receipt)))) == []


def test_a_receipt_before_a_field_says_which_version_brought_it() -> None:
    view = VIEWS["expert-routing"].build(Source(receipt=receipts()["receipt-1.1"]))
    reason = "receipts of schema 1.1.0 have no such field, 1.2.0 brought it"
    assert view.missing["expert_ranks"] == view.missing["tokens_between_ranks"] == reason


def fields_of(model: type[Record]) -> dict[str, Any]:
    return {name: info.annotation for name, info in model.model_fields.items()}


def has_field(model: type[Record], path: str) -> bool:
    head, _, rest = path.partition(".")
    annotation = fields_of(model).get(head)
    if annotation is None:
        return False
    if not rest:
        return True
    inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
    return any(issubclass(a, Record) and has_field(a, rest) for a in inner)


@pytest.mark.parametrize("name", VIEWS)
def test_the_documented_names_are_the_ones_in_use(name: str) -> None:
    text = (ROOT / "docs" / "VIEWS.md").read_text(encoding="utf-8")
    section = text.split(f"## `{name}`")[1].split("\n## ")[0]
    for ours, article in VIEWS[name].names.items():
        assert has_field(VIEWS[name].model, ours), ours
        assert f"| `{ours}` | `{article}` |" in section
    for field in VIEWS[name].model.model_fields:
        if field not in View.model_fields and field != "view":
            assert f"`{field}" in section, f"docs/VIEWS.md does not name {field}"


def test_a_view_is_one_json_document_without_nan() -> None:
    view = VIEWS["goodput"].build(Source(receipt=make_receipt(), steps=make_steps()))
    assert json.loads(view.model_dump_json())["view"] == "goodput"
