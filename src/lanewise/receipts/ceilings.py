"""What a machine did at best: a small document in the store, made by `lanewise doctor`, cited by every run on that machine.

    <root>/ceilings/<first digits of the machine's instance digest>-<dtype>-<threads>t.json

One document per machine, dtype and (on a CPU) number of threads; measuring again replaces it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from lanewise.errors import ReceiptError, one_line
from lanewise.receipts.record import NonNegativeInt, Record
from lanewise.receipts.schema import Machine, Producer
from lanewise.receipts.utilization import CitedCeiling

CEILINGS_SCHEMA_VERSION = "1.0.0"
FOLDER = "ceilings"
NUM_DIGITS = 16

Rate = Annotated[float, Field(gt=0.0)]


class CeilingRecord(Record):
    """Measured ceilings of one machine, medians over a few repetitions."""

    schema_version: str = CEILINGS_SCHEMA_VERSION
    kind: Literal["ceilings"] = "ceilings"
    measured_at: str
    """RFC 3339, UTC."""
    producer: Producer
    machine: Machine
    torch_version: str | None
    dtype: str
    """Of the matmul operands."""
    num_threads: NonNegativeInt | None
    """Intra-op threads; null on a GPU, where they make no difference."""
    copy_bytes_per_second: Rate
    """Bytes read plus bytes written."""
    copy_buffer_bytes: NonNegativeInt
    matmul_flops_per_second: Rate
    """2·n³ per square product."""
    matmul_size: NonNegativeInt
    num_samples: dict[str, NonNegativeInt]
    """Repetitions behind each median, `copy` and `matmul`."""


def ceiling_name(machine: Machine, dtype: str, num_threads: int | None) -> str:
    """File name of the document, without its folder."""
    digits = machine.instance_digest.removeprefix("sha256:")[:NUM_DIGITS]
    threads = "" if num_threads is None else f"-{num_threads}t"
    return f"{digits}-{dtype}{threads}.json"


def cite(record: CeilingRecord, *, at: str) -> CitedCeiling:
    """The ceiling as a run that starts at `at` (RFC 3339, UTC) cites it; a clock set back makes its age 0.

    Raises:
        ReceiptError: the record does not say when it was measured.
    """
    try:
        age = datetime.fromisoformat(at) - datetime.fromisoformat(record.measured_at)
    except (ValueError, TypeError) as error:
        raise ReceiptError(
            f"measured_at is {one_line(repr(record.measured_at))}; ceilings need an RFC 3339 time in UTC"
        ) from error
    return CitedCeiling(
        matmul_flops_per_second=record.matmul_flops_per_second,
        dtype=record.dtype,
        num_threads=record.num_threads,
        measured_at=record.measured_at,
        age_seconds=max(0.0, age.total_seconds()),
        machine_instance_digest=record.machine.instance_digest,
    )
