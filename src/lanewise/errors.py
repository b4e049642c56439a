"""Every error a person can meet, in one tree.

A message says what was received, the rule, and the next action. The command line prints it on one line
(`LaneError`: one line per problem) and exits with the code shown here; none of these ends in a traceback.

    LanewiseError                    exit
    ├── UsageError                   2     bad input: a flag, a name, a value
    │   ├── LaneError                2     a lane file or override is wrong; carries every problem with its place
    │   ├── DataError                2     training data is missing, empty, binary or too short
    │   ├── BackendError             2     a backend was named and cannot run
    │   └── NotBuiltError            2     the schema knows it, this version does not implement it
    ├── ReceiptError                 3     a receipt is truncated, altered, of a newer major version, or invalid
    ├── CampaignError                3     a campaign is incomplete, damaged or already running elsewhere
    ├── StoreError                   5     the disk is full or the store cannot be written
    ├── ChildError                   5     a training process died or answered nonsense
    ├── RunFailed                    5     training cannot go on (memory, compiler); its receipt has the facts
    └── RunInterrupted             130     stopped by Ctrl-C or a signal; finished work is kept
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

MAX_PHRASE = 240
"""Characters of foreign text that a message shows: keys and values of a damaged file may be of any length."""


def one_line(text: str, num_shown: int = MAX_PHRASE) -> str:
    """Foreign text as part of a message: signs that do not print are escaped, a long middle is left out."""
    if len(text) > num_shown:
        half = num_shown // 2
        text = f"{text[:half]}…{text[-half:]}"
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


class LanewiseError(Exception):
    """Base of all errors that are the user's to act on."""

    exit_code: ClassVar[int] = 2


class UsageError(LanewiseError):
    """A flag, a name or a value given by the user is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One fault in a lane: where it is and what to do about it.

    Attributes:
        where: `file:line` or the dotted path of the key, e.g. `my.toml:14` or `--set batch.topk`.
        path: dotted path of the key, e.g. `model.moe.topk`.
        message: what is wrong, the rule, the next action; one that starts with `= value` continues the path.
    """

    where: str
    path: str
    message: str

    def __str__(self) -> str:
        """Return the line printed for this problem, whatever stands in the file."""
        separator = "" if not self.path else " " if self.message.startswith("= ") else ": "
        where, path = one_line(self.where), one_line(self.path, MAX_PHRASE // 2)
        return f"{where}: {path}{separator}{one_line(self.message, 4 * MAX_PHRASE)}"


class LaneError(UsageError):
    """A lane is not valid; `problems` lists every fault found."""

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        """Accept a list of problems, or one sentence."""
        self.problems: tuple[Problem, ...] = () if isinstance(problems, str) else tuple(problems)
        super().__init__(
            one_line(problems, 4 * MAX_PHRASE)
            if isinstance(problems, str)
            else "\n".join(str(problem) for problem in problems)
        )


class DataError(UsageError):
    """Training data is missing, empty, binary, or shorter than one row."""


class BackendError(UsageError):
    """A backend was asked for by name and cannot run here."""


class NotBuiltError(UsageError):
    """The schema knows this setting, and this version does not implement it."""


class ReceiptError(LanewiseError):
    """A receipt or decision cannot be read or does not hold what it claims."""

    exit_code = 3


class CampaignError(LanewiseError):
    """A campaign lacks arms or blocks, is damaged, or belongs to another process."""

    exit_code = 3


class StoreError(LanewiseError):
    """The store cannot be written or read (full disk, permissions)."""

    exit_code = 5


class ChildError(LanewiseError):
    """A training process died, hung, or broke the protocol."""

    exit_code = 5


class RunFailed(LanewiseError):
    """Training could not go on for want of memory, or because the compiler gave up; a receipt has the facts."""

    exit_code = 5


class RunInterrupted(LanewiseError):
    """The user or the system stopped the run; what was finished is kept."""

    exit_code = 130
