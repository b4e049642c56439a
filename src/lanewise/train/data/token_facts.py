"""What the metadata embeddings need to know of every token of a tokenizer."""

from __future__ import annotations

import string
from typing import Final

import numpy as np
import numpy.typing as npt

from lanewise.lane.structure import TAB_WIDTH, CharacterClass, Fact
from lanewise.train.data.tokens import Tokenizer

_BLANKS: Final = b" \t\r\f\v"
_OPENING, _CLOSING, _QUOTES = b"([{", b")]}", b"\"'`"
_PUNCTUATION: Final = b".,;:?!"

_CLASS_BY_BYTES: Final[tuple[tuple[bytes, CharacterClass], ...]] = (
    (b"\n", CharacterClass.NEWLINE),
    (_BLANKS, CharacterClass.BLANK),
    (string.ascii_letters.encode(), CharacterClass.LETTER),
    (string.digits.encode(), CharacterClass.DIGIT),
    (b"_", CharacterClass.UNDERSCORE),
    (_OPENING, CharacterClass.OPEN_BRACKET),
    (_CLOSING, CharacterClass.CLOSE_BRACKET),
    (_QUOTES, CharacterClass.QUOTE),
    (_PUNCTUATION, CharacterClass.PUNCTUATION),
    (string.punctuation.encode(), CharacterClass.OPERATOR),
)
"""The first row that holds a byte decides."""


def token_facts(tokenizer: Tokenizer, vocab_size: int) -> npt.NDArray[np.int16]:
    """Facts of every id, int16 [vocab_size, facts], columns as `lane.structure.Fact`.

    Args:
        tokenizer: its ids are below `vocab_size`.
        vocab_size: rows of the model's embedding; ids the tokenizer does not have are all zero.
    """
    facts = np.zeros((vocab_size, len(Fact)), dtype=np.int16)
    limit = np.iinfo(np.int16).max
    for token_id, text in enumerate(tokenizer.token_bytes()):
        facts[token_id] = [min(value, limit) for value in _facts_of(text)]
    facts[tokenizer.separator_id] = 0
    facts[tokenizer.separator_id, Fact.IS_SEPARATOR] = 1
    return facts


def _facts_of(text: bytes) -> list[int]:
    tail = text.rpartition(b"\n")[2]
    tail_text = tail.lstrip(_BLANKS)
    indent = tail[: len(tail) - len(tail_text)]
    by_fact: dict[Fact, int] = {
        Fact.CHARACTER_CLASS: _class_of(text),
        Fact.NEWLINES: text.count(b"\n"),
        Fact.TAIL_LENGTH: len(tail),
        Fact.TAIL_INDENT: len(indent) + (TAB_WIDTH - 1) * indent.count(b"\t"),
        Fact.TAIL_CLASS: _class_of(tail_text),
        Fact.BRACKET_DELTA: _count(text, _OPENING) - _count(text, _CLOSING),
        Fact.IS_SEPARATOR: 0,
    }
    return [by_fact[fact] for fact in Fact]


def _class_of(text: bytes) -> CharacterClass:
    """Class of the first byte that is not blank; of a blank one when there is no other."""
    if not text:
        return CharacterClass.NONE
    first = (text.lstrip(_BLANKS) or text)[0]
    if first >= 128:
        return CharacterClass.NON_ASCII
    return next(
        (kind for members, kind in _CLASS_BY_BYTES if first in members), CharacterClass.CONTROL
    )


def _count(text: bytes, members: bytes) -> int:
    return sum(text.count(bytes([member])) for member in members)
