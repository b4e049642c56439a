"""Base of every table of a lane, and the number types the tables share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Spec(BaseModel):
    """Base of every table of a lane: immutable, strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
