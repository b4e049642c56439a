"""What every record is made of: the strict base class and the checked kinds of values."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.0)]

LogEffect = Annotated[float, Field(ge=-700.0, le=700.0)]
"""An effect, a noise or a margin on the log scale: its exponential is a number."""


def _null_unless_finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


FiniteOrNull = Annotated[float | None, BeforeValidator(_null_unless_finite)]
"""A training quantity that may diverge: NaN and infinities, which JSON cannot hold, become null."""


class Record(BaseModel):
    """Base of every part of a record: strict for writers, immutable, no NaN or infinity (JSON has none)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
