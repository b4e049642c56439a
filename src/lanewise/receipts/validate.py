"""Whether a record holds what it claims: shape, identity, artifacts by digest, closure of goodput, reasons for nulls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lanewise.errors import LanewiseError
from lanewise.receipts import files
from lanewise.receipts.calibration import CalibrationBlock, CalibrationRecord
from lanewise.receipts.ceilings import CeilingRecord, ceiling_name, cite
from lanewise.receipts.decision import BlockRecord, CampaignRecord, Decision
from lanewise.receipts.document import RecordT, parse_json, parse_receipt, parse_record, short
from lanewise.receipts.migrate import parse_version
from lanewise.receipts.schema import BADPUT_CATEGORIES, FIELDS_SINCE, Goodput, RunReceipt
from lanewise.receipts.store import Store, artifact_location, sha256_of

CLOSURE_TOLERANCE_RATIO = 0.001
"""Steps and badput must add up to wall time within this share of it."""

MEASURED_GROUPS: tuple[str, ...] = (
    "timing",
    "throughput",
    "goodput",
    "compile",
    "memory",
    "profile",
    "flops",
    "routing",
    "telemetry",
    "host",
    "numerics",
)
"""Groups in which a null needs a reason in `missing`."""

NULL_BY_NATURE = frozenset({"numerics.paired_loss_max_abs_diff"})
"""Null in every single run; decisions fill it."""


def receipt_file_faults(location: str) -> list[str]:
    """Every fault of a receipt file, each a phrase; empty when it is sound."""
    try:
        receipt = parse_receipt(files.read_bytes(location), location)
    except FileNotFoundError:
        return ["there is no such file"]
    except LanewiseError as error:
        return [str(error).removeprefix(f"{location}: ")]
    return [
        *_name_faults(receipt, location),
        *_artifact_faults(receipt, location),
        *receipt_faults(receipt),
    ]


def receipt_faults(receipt: RunReceipt) -> list[str]:
    """Every fault in what a receipt says, apart from its file: closure, validity against checks, nulls, reasons."""
    faults: list[str] = []
    if receipt.goodput is not None:
        faults += _goodput_faults(receipt.goodput, counts=receipt.outcome.validity == "valid")
    failed = [check.name for check in receipt.outcome.checks if not check.ok]
    if failed and receipt.outcome.validity == "valid":
        faults.append(f"outcome.validity is valid, and these checks failed: {', '.join(failed)}")
    body = receipt.model_dump(mode="json")
    unexplained = unexplained_nulls(body)
    if unexplained:
        faults.append(f"null without a reason in missing: {_first_few(unexplained)}")
    faults += [
        f"missing explains {path}, which is not null"
        for path in receipt.missing
        if not any(_is_inside(null, path) for null in _nulls(body))
    ]
    return faults


def unexplained_nulls(body: Mapping[str, Any]) -> list[str]:
    """Dotted paths of nulls in the measured groups that neither they nor a parent explain in `missing`.

    Args:
        body: a receipt as JSON values, with or without its id.
    """
    missing = body.get("missing", {})
    return [
        path
        for path in _nulls(body)
        if path.split(".")[0] in MEASURED_GROUPS
        and path not in NULL_BY_NATURE
        and not _is_newer(path, body)
        and not any(_is_inside(path, explained) for explained in missing)
    ]


def _is_newer(path: str, body: Mapping[str, Any]) -> bool:
    """Whether a field came with a later version than that of the receipt, whose writer could not fill it."""
    since = FIELDS_SINCE.get(path)
    return since is not None and parse_version(body["schema_version"]) < parse_version(since)


def store_faults(store: Store) -> Iterator[tuple[str, list[str]]]:
    """Check every receipt, decision, campaign, calibration and ceiling of a store.

    Yields:
        Location and faults of each file, sound ones included.
    """
    receipts = sorted(store.receipt_files())
    for file in receipts:
        location = f"{store.root}/{file.name}"
        yield location, receipt_file_faults(location)
    known = {f"sha256:{file.stem}" for file in receipts}
    for file in sorted(store.decision_files()):
        location = f"{store.root}/{file.name}"
        yield location, decision_file_faults(location, known)
    for file in sorted(store.campaign_files()):
        location = f"{store.root}/{file.name}"
        yield location, campaign_file_faults(location)
    for file in sorted(store.calibration_files()):
        location = f"{store.root}/{file.name}"
        yield location, calibration_file_faults(location, known)
    for file in sorted(store.ceiling_files()):
        location = f"{store.root}/{file.name}"
        yield location, ceilings_file_faults(location)


def record_file_faults(location: str, store: Store) -> list[str]:
    """Every fault of the record in a file, whatever its kind.

    Args:
        location: the file.
        store: where the receipts that a decision cites are looked for.
    """
    try:
        kind = str(parse_json(files.read_bytes(location), location).get("kind"))
    except (FileNotFoundError, LanewiseError):
        kind = ""
    if kind in ("decision", "noise_calibration"):
        known = {f"sha256:{file.stem}" for file in store.receipt_files()}
        check = decision_file_faults if kind == "decision" else calibration_file_faults
        return check(location, known)
    others = {"campaign": campaign_file_faults, "ceilings": ceilings_file_faults}
    return others.get(kind, receipt_file_faults)(location)


def decision_file_faults(location: str, known_receipts: set[str]) -> list[str]:
    """Every fault of a decision file, cited receipts that are not in the store among them."""
    decision = _read(Decision, location)
    if not isinstance(decision, Decision):
        return [decision]
    return _absent_receipts(decision.blocks, known_receipts)


def calibration_file_faults(location: str, known_receipts: set[str]) -> list[str]:
    """Every fault of a calibration file, cited receipts that are not in the store among them."""
    calibration = _read(CalibrationRecord, location)
    if not isinstance(calibration, CalibrationRecord):
        return [calibration]
    return _absent_receipts(calibration.blocks, known_receipts)


def _absent_receipts(
    blocks: Sequence[BlockRecord | CalibrationBlock], known_receipts: set[str]
) -> list[str]:
    cited = {
        receipt_id for block in blocks for arm in block.receipts.values() for receipt_id in arm
    }
    absent = sorted(cited - known_receipts)
    if not absent:
        return []
    return [f"cites {len(absent)} receipts that are not in the store, first {short(absent[0])}"]


def campaign_file_faults(location: str) -> list[str]:
    """Every fault of a campaign file."""
    campaign = _read(CampaignRecord, location)
    return [] if isinstance(campaign, CampaignRecord) else [campaign]


def ceilings_file_faults(location: str) -> list[str]:
    """Every fault of a file of measured ceilings, among them one under the name of another measurement."""
    record = _read(CeilingRecord, location)
    if not isinstance(record, CeilingRecord):
        return [record]
    faults = []
    name = ceiling_name(record.machine, record.dtype, record.num_threads)
    if location.rsplit("/", 1)[-1] != name:
        faults.append(f"the file of these ceilings must be named {name}")
    try:
        cite(record, at=record.measured_at)
    except LanewiseError as error:
        faults.append(str(error))
    return faults


def _read(model: type[RecordT], location: str) -> RecordT | str:
    try:
        return parse_record(model, files.read_bytes(location), location)
    except FileNotFoundError:
        return "there is no such file"
    except LanewiseError as error:
        return str(error).removeprefix(f"{location}: ")


def _name_faults(receipt: RunReceipt, location: str) -> list[str]:
    expected = short(receipt.receipt_id, 64) + ".json"
    if location.rsplit("/", 1)[-1] == expected:
        return []
    return [f"the file of receipt {short(receipt.receipt_id)} must be named {expected}"]


def _artifact_faults(receipt: RunReceipt, location: str) -> Iterator[str]:
    for artifact in receipt.artifacts:
        try:
            content = files.read_bytes(artifact_location(location, artifact))
        except FileNotFoundError:
            yield f"artifact {artifact.uri} is gone"
        except LanewiseError as error:
            yield f"artifact {artifact.uri}: {error}"
        else:
            if sha256_of(content) != artifact.sha256:
                yield f"artifact {artifact.uri} was altered"


def _goodput_faults(goodput: Goodput, *, counts: bool) -> Iterator[str]:
    expected = {*BADPUT_CATEGORIES, "other"}
    if goodput.badput_seconds.keys() != expected:
        odd = ", ".join(sorted(goodput.badput_seconds.keys() ^ expected))
        yield f"goodput.badput_seconds must have every category and other; check {odd}"
        return
    wall = goodput.wall_duration_seconds
    total = goodput.step_seconds + sum(goodput.badput_seconds.values())
    if abs(total - wall) > CLOSURE_TOLERANCE_RATIO * wall:
        yield (
            f"goodput does not close: steps and badput are {total:.6g} s, wall time is {wall:.6g} s"
        )
    other = goodput.badput_seconds["other"]
    if counts and other < -CLOSURE_TOLERANCE_RATIO * wall:
        yield f"goodput.badput_seconds.other is {other:.6g} s: spans overlap, so the receipt cannot be valid"


def _nulls(value: Any, path: str = "") -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _nulls(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _nulls(item, f"{path}.{position}")


def _first_few(names: list[str], num_shown: int = 3) -> str:
    more = len(names) - num_shown
    return ", ".join(names[:num_shown]) + (f" and {more} more" if more > 0 else "")


def _is_inside(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(ancestor + ".")
