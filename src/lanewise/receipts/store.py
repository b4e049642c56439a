"""The store: immutable receipts by content, decisions and campaigns by name, in plain JSON files.

    <root>/receipts/<lane name>/<yyyy-mm>/<receipt id>.json
    <root>/receipts/<lane name>/<yyyy-mm>/<digest of the series>.steps.json     sidecar, an artifact of the receipt
    <root>/decisions/<id>.json
    <root>/campaigns/<id>/campaign.json
    <root>/calibrations/<id>.json
    <root>/ceilings/<machine>-<dtype>-<threads>t.json                           what a machine does at best
    <root>/index.sqlite                                                         rebuildable, never the truth

Any number of processes may write at once: names are unique by content, files appear whole, nothing is locked.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError

from lanewise.errors import LanewiseError, ReceiptError, StoreError
from lanewise.receipts import ceilings, files
from lanewise.receipts.calibration import CalibrationRecord
from lanewise.receipts.decision import CampaignRecord, Decision
from lanewise.receipts.document import (
    RecordT,
    first_fault,
    parse_json,
    parse_receipt,
    parse_record,
    parse_steps,
    receipt_id_of,
    short,
)
from lanewise.receipts.files import FileStamp
from lanewise.receipts.schema import Artifact, Machine, RunReceipt, StepSeries
from lanewise.receipts.seal import sealed

STEPS_KIND = "step_series"
STEPS_SUFFIX = ".steps.json"

_PLACEHOLDER_ID = "sha256:" + "0" * 64
_SAFE_NAME = re.compile(r"[A-Za-z0-9][\w.+:=-]*")
_ID_OR_PREFIX = re.compile(r"(?:sha256:)?[0-9a-f]{1,64}")


class Store:
    """One store of evidence.

    Args:
        root: folder or fsspec URI; made on the first write.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = files.normal_root(root)

    def write_receipt(
        self, body: Mapping[str, Any], *, steps: StepSeries | None = None
    ) -> tuple[str, str]:
        """Write one receipt, its series first, so that no receipt cites a file that is not there.

        Args:
            body: the fields of a `RunReceipt` without `receipt_id`; values are records or JSON values.
            steps: per-step series, written beside the receipt and cited in `artifacts`.

        Returns:
            The receipt id and the location written.

        Raises:
            ReceiptError: the body is not a receipt.
            StoreError: the disk is full or the store cannot be written; nothing is left behind.
        """
        draft = _strict_receipt({**body, "receipt_id": _PLACEHOLDER_ID})
        folder = self._receipt_folder(draft)
        sidecar: str | None = None
        if steps is not None:
            content = json_bytes(steps)
            artifact = _steps_artifact(content)
            draft = draft.model_copy(update={"artifacts": (*draft.artifacts, artifact)})
            sidecar = f"{folder}/{artifact.uri}"
        document = draft.model_dump(mode="json")
        document["receipt_id"] = receipt_id = _hash(document)
        location = f"{folder}/{short(receipt_id, 64)}.json"
        sidecar_is_new = sidecar is not None and not files.exists(sidecar)
        try:
            if sidecar is not None and sidecar_is_new:
                files.write_bytes(sidecar, content)
            files.write_bytes(location, json_bytes(document))
        except BaseException:
            if sidecar is not None and sidecar_is_new:
                files.remove(sidecar)
            raise
        return receipt_id, location

    def write_decision(self, decision: Decision) -> str:
        """Write a decision, replacing an earlier one of the same id; returns its location."""
        name = _safe_name("decision_id", decision.decision_id)
        return self._write(f"{self.root}/decisions/{name}.json", decision)

    def write_campaign(self, campaign: CampaignRecord) -> str:
        """Write the state of a campaign, replacing its earlier state; returns its location."""
        return self._write(f"{self.campaign_folder(campaign.campaign_id)}/campaign.json", campaign)

    def write_calibration(self, calibration: CalibrationRecord) -> str:
        """Write a calibration, replacing an earlier state of the same one; returns its location."""
        name = _safe_name("calibration_id", calibration.calibration_id)
        return self._write(f"{self.root}/calibrations/{name}.json", calibration)

    def write_ceilings(self, record: ceilings.CeilingRecord) -> str:
        """Write what a machine does at best, replacing an earlier measurement of the same; returns its location."""
        name = ceilings.ceiling_name(record.machine, record.dtype, record.num_threads)
        return self._write(f"{self.root}/{ceilings.FOLDER}/{name}", record)

    def read_ceilings(
        self, machine: Machine, dtype: str, num_threads: int | None
    ) -> ceilings.CeilingRecord | None:
        """What this very machine did at best with that dtype and number of threads; None when nobody has measured it.

        Raises:
            ReceiptError: the document is damaged, of another machine, or of a newer major version.
        """
        name = ceilings.ceiling_name(machine, dtype, num_threads)
        location = f"{self.root}/{ceilings.FOLDER}/{name}"
        try:
            content = files.read_bytes(location)
        except FileNotFoundError:
            return None
        record = parse_record(ceilings.CeilingRecord, content, location)
        measured = (record.machine.instance_digest, record.dtype, record.num_threads)
        if measured != (machine.instance_digest, dtype, num_threads):
            raise ReceiptError(
                f"{location}: holds the ceilings of another machine, dtype or number of threads"
            )
        return record

    def campaign_folder(self, campaign_id: str) -> str:
        """Where a campaign keeps its record and its working files."""
        return f"{self.root}/campaigns/{_safe_name('campaign_id', campaign_id)}"

    def read_receipt(self, reference: str) -> RunReceipt:
        """Read and check a receipt.

        Args:
            reference: its id, a unique beginning of it (with or without `sha256:`), or a path.

        Raises:
            ReceiptError: unknown, ambiguous, truncated, altered, or of a newer major version.
        """
        location = self.locate_receipt(reference)
        return parse_receipt(_read(location), location)

    def receipt_document(self, reference: str) -> dict[str, Any]:
        """The JSON object of a receipt as it was written, after the same checks as `read_receipt`."""
        location = self.locate_receipt(reference)
        content = _read(location)
        parse_receipt(content, location)
        return parse_json(content, location)

    def read_steps(self, reference: str) -> StepSeries | None:
        """The per-step series of a receipt, checked against its digest; None when it has none."""
        location = self.locate_receipt(reference)
        return self.steps_of(parse_receipt(_read(location), location), location)

    def steps_of(self, receipt: RunReceipt, location: str) -> StepSeries | None:
        """`read_steps` of a receipt that was read from a location."""
        found = (artifact for artifact in receipt.artifacts if artifact.kind == STEPS_KIND)
        artifact = next(found, None)
        return None if artifact is None else _read_series(location, artifact)

    def read_decision(self, decision_id: str) -> Decision:
        """Read a decision by its id or a path."""
        return self._read_named(Decision, "decision", decision_id, self.decision_files())

    def read_campaign(self, campaign_id: str) -> CampaignRecord:
        """Read a campaign by its id or a path."""
        return self._read_named(CampaignRecord, "campaign", campaign_id, self.campaign_files())

    def iter_receipts(self, problems: list[LanewiseError] | None = None) -> Iterator[RunReceipt]:
        """Every receipt of the store, fully checked, in the order of their locations.

        Args:
            problems: takes the errors of unreadable receipts; without a list the first one is raised.
        """
        yield from self._iterate(self.receipt_files(), parse_receipt, problems)

    def iter_decisions(self, problems: list[LanewiseError] | None = None) -> Iterator[Decision]:
        """Every decision of the store; `problems` as in `iter_receipts`."""
        yield from self._iterate(self.decision_files(), partial(parse_record, Decision), problems)

    def iter_campaigns(
        self, problems: list[LanewiseError] | None = None
    ) -> Iterator[CampaignRecord]:
        """Every campaign of the store; `problems` as in `iter_receipts`."""
        yield from self._iterate(
            self.campaign_files(), partial(parse_record, CampaignRecord), problems
        )

    def read_calibration(self, calibration_id: str) -> CalibrationRecord:
        """Read a calibration by its id or a path."""
        found = self.calibration_files()
        return self._read_named(CalibrationRecord, "calibration", calibration_id, found)

    def iter_calibrations(
        self, problems: list[LanewiseError] | None = None
    ) -> Iterator[CalibrationRecord]:
        """Every calibration of the store; `problems` as in `iter_receipts`."""
        yield from self._iterate(
            self.calibration_files(), partial(parse_record, CalibrationRecord), problems
        )

    def receipt_files(self) -> list[FileStamp]:
        """The receipt files, named relative to the root; sidecars are left out."""
        return files.list_json(self.root, "receipts", but_not=STEPS_SUFFIX)

    def decision_files(self) -> list[FileStamp]:
        """The decision files, named relative to the root."""
        return files.list_json(self.root, "decisions")

    def calibration_files(self) -> list[FileStamp]:
        """The calibration files, named relative to the root."""
        return files.list_json(self.root, "calibrations")

    def ceiling_files(self) -> list[FileStamp]:
        """The documents of measured ceilings, named relative to the root."""
        return files.list_json(self.root, ceilings.FOLDER)

    def indexed_files(self, found: files.FoldersFound) -> list[FileStamp]:
        """Receipt and decision files of folders that `found` does not know to be unchanged; all of a remote store."""
        if files.is_remote(self.root):
            return self.receipt_files() + self.decision_files()
        receipts = files.list_changed_json(self.root, "receipts", found, but_not=STEPS_SUFFIX)
        return receipts + files.list_changed_json(self.root, "decisions", found)

    def campaign_files(self) -> list[FileStamp]:
        """The campaign records, named relative to the root; working files of campaigns are left out."""
        found = files.list_json(self.root, "campaigns")
        return [file for file in found if file.stem == "campaign"]

    def locate_receipt(self, reference: str) -> str:
        """Where the receipt is that an id, a unique beginning of one, or a path means.

        Raises:
            ReceiptError: no receipt or several are meant.
        """
        if reference.endswith(".json") or "/" in reference:
            return reference
        locations = {file.stem: f"{self.root}/{file.name}" for file in self.receipt_files()}
        digits = reference.removeprefix("sha256:")
        if _ID_OR_PREFIX.fullmatch(reference):
            matches = sorted(name for name in locations if name.startswith(digits))
            if len(matches) == 1:
                return locations[matches[0]]
            if matches:
                shown = ", ".join(short(name) for name in matches[:4])
                more = f" and {len(matches) - 4} more" if len(matches) > 4 else ""
                raise ReceiptError(
                    f"'{reference}' is the beginning of {len(matches)} receipts: {shown}{more}; "
                    "give more digits"
                )
        raise ReceiptError(
            f"no receipt '{reference}' in {self.root}. "
            + _near_ids(digits, locations)
            + "`lanewise receipt list` shows all."
        )

    def _receipt_folder(self, receipt: RunReceipt) -> str:
        month = re.match(r"\d{4}-(?:0[1-9]|1[0-2])(?=-)", receipt.created_at)
        if month is None:
            raise ReceiptError(
                f"created_at is {receipt.created_at!r}; a receipt needs an RFC 3339 time in UTC"
            )
        return f"{self.root}/receipts/{_safe_name('lane.name', receipt.lane.name)}/{month.group()}"

    def _write(self, location: str, record: BaseModel) -> str:
        files.write_bytes(location, json_bytes(sealed(record.model_dump(mode="json"))))
        return location

    def _iterate(
        self,
        found: list[FileStamp],
        parse: Callable[[bytes, str], RecordT],
        problems: list[LanewiseError] | None,
    ) -> Iterator[RecordT]:
        for file in sorted(found):
            location = f"{self.root}/{file.name}"
            try:
                record = parse(_read(location), location)
            except (ReceiptError, StoreError) as error:
                if problems is None:
                    raise
                problems.append(error)
            else:
                yield record

    def _read_named(
        self, model: type[RecordT], kind: str, reference: str, found: list[FileStamp]
    ) -> RecordT:
        if reference.endswith(".json") or "/" in reference:
            return parse_record(model, _read(reference), reference)
        names = {_record_id(file): f"{self.root}/{file.name}" for file in found}
        location = names.get(reference)
        if location is None:
            near = difflib.get_close_matches(reference, names, n=3, cutoff=0.5)
            hint = f"Near: {', '.join(near)}." if near else f"It holds {len(names)} of them."
            raise ReceiptError(f"no {kind} '{reference}' in {self.root}. {hint}")
        return parse_record(model, _read(location), location)


def json_bytes(value: BaseModel | Mapping[str, Any]) -> bytes:
    """A record as it is stored: JSON a person can read, keys in schema order, a newline at the end."""
    document = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def sha256_of(content: bytes) -> str:
    """`sha256:` and the hex digest of bytes."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def artifact_location(receipt_location: str, artifact: Artifact) -> str:
    """Where an artifact is: its `uri` is relative to the receipt's folder unless it is absolute."""
    if "://" in artifact.uri or artifact.uri.startswith("/"):
        return artifact.uri
    folder, slash, _name = receipt_location.rpartition("/")
    return f"{folder}{slash}{artifact.uri}"


def _strict_receipt(document: dict[str, Any]) -> RunReceipt:
    try:
        return RunReceipt.model_validate(document)
    except ValidationError as error:
        raise ReceiptError(f"this is not a receipt: {first_fault(error)}") from error


def _steps_artifact(content: bytes) -> Artifact:
    digest = sha256_of(content)
    return Artifact(
        kind=STEPS_KIND,
        uri=f"{short(digest, 64)}{STEPS_SUFFIX}",
        sha256=digest,
        size_bytes=len(content),
    )


def _hash(document: dict[str, Any]) -> str:
    try:
        return receipt_id_of(document)
    except (TypeError, ValueError) as error:
        raise ReceiptError(f"this receipt has no canonical form: {error}") from error


def _read(location: str) -> bytes:
    try:
        return files.read_bytes(location)
    except FileNotFoundError as error:
        raise ReceiptError(
            f"no file {location}; `lanewise receipt list` shows what there is"
        ) from error


def _read_series(receipt_location: str, artifact: Artifact) -> StepSeries:
    location = artifact_location(receipt_location, artifact)
    content = _read(location)
    if sha256_of(content) != artifact.sha256:
        raise ReceiptError(
            f"{location}: altered: its receipt cites {short(artifact.sha256)} and its content is "
            f"{short(sha256_of(content))}; restore the file from a copy"
        )
    return parse_steps(content, location)


def _safe_name(what: str, name: str) -> str:
    if not _SAFE_NAME.fullmatch(name):
        raise ReceiptError(
            f"{what} is {name!r}, which is no file name; use letters, digits and . _ - + : ="
        )
    return name


def _record_id(file: FileStamp) -> str:
    return file.name.split("/")[-2] if file.stem == "campaign" else file.stem


def _near_ids(digits: str, known: Mapping[str, str]) -> str:
    heads = sorted({name[: max(len(digits), 12)] for name in known})
    near = difflib.get_close_matches(digits, heads, n=3, cutoff=0.5)
    return f"Near: {', '.join(near)}. " if near else ""
