"""Base of every table of a lane, and the number types the tables share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_COUNT = 2**31 - 1
"""Largest size: what 32-bit indices of kernels can address."""
MIN_POSITIVE, MAX_NUMBER = 1e-30, 1e6
"""Positive numbers stay numbers in fp32, and so do their squares and products with activations: below, an ε is 0."""

Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
NonNegativeCount = Annotated[int, Field(ge=0, le=MAX_COUNT)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveNumber = Annotated[float, Field(ge=MIN_POSITIVE, le=MAX_NUMBER)]
NonNegativeNumber = Annotated[float, Field(ge=0.0, le=MAX_NUMBER)]
Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(min_length=1)]


class Spec(BaseModel):
    """Base of every table of a lane: immutable, strict about unknown keys, finite in all numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
