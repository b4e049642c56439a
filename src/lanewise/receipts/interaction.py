"""Interactions of a campaign that measured features from both ends: part of its document, recomputed from decisions.

A feature's effect is log step time on − off. `add_one` is that effect on the bare lane, `leave_one_out` the same effect in
the full stack. Their difference is the feature's interaction with everything else that the full stack switches on.
"""

from __future__ import annotations

from lanewise.receipts.record import LogEffect
from lanewise.receipts.schema import Record


class Interaction(Record):
    """One feature: how its effect changes from the bare lane to the full stack."""

    feature: str
    add_one: str
    """Id of the decision on the bare lane."""
    leave_one_out: str
    """Id of the decision in the full stack."""
    add_one_log: LogEffect
    leave_one_out_log: LogEffect
    difference_log: LogEffect
    """leave_one_out − add_one; above 0 the feature gains less (or costs more) in the full stack than alone."""
    interval_low_log: LogEffect
    interval_high_log: LogEffect
    confidence: float
    degrees_of_freedom: float
    """Welch's, of two independent sets of blocks."""
    p_value: float
    """Two-sided, of no interaction."""
    adjusted_p: float
    """Holm, over the features of the campaign."""
    mde_log: LogEffect
    """Smallest difference that Welch's test alone finds with 80 % power at this spread."""
    detectable_log: LogEffect
    """Smallest difference that is reported with 80 % power: the whole rule, MDE and Holm included."""
    found: bool
    """Interval without 0, adjusted p within α and |difference| at least the MDE."""
    reason: str


class UntestedInteraction(Record):
    """A feature of the campaign whose two effects cannot be compared."""

    feature: str
    reason: str


class Additivity(Record):
    """Whether the add-one effects, summed on the log scale (ratios multiplied), explain the measured full stack."""

    full_stack: str
    """Id of the decision on all features at once."""
    add_one: tuple[str, ...]
    """Ids of the decisions that were summed."""
    missing: tuple[str, ...]
    """Features of the full stack without a usable add-one effect; their share is in the difference."""
    sum_log: LogEffect
    full_stack_log: LogEffect
    difference_log: LogEffect
    """full stack − sum; above 0 the features together gain less than their product says."""
    interval_low_log: LogEffect
    interval_high_log: LogEffect
    confidence: float
    degrees_of_freedom: float
    p_value: float
    mde_log: LogEffect
    explained: bool | None
    """No difference beyond the MDE with an interval without 0; null while a feature is missing."""
    reason: str


class InteractionTable(Record):
    """All that a campaign says about interactions."""

    interactions: tuple[Interaction, ...]
    untested: tuple[UntestedInteraction, ...] = ()
    additivity: Additivity | None = None
    additivity_reason: str | None = None
    """Why there is no additivity, or null."""
