"""What the metadata embeddings know of a token by itself, and what they derive from the tokens so far.

Shared by the tokenizer side, which fills the table of facts, and by the model, which reads it.
"""

from __future__ import annotations

import enum


class CharacterClass(enum.IntEnum):
    """Kind of a character; a token has that of its first character that is not blank."""

    NONE = 0
    """No text: the separator, special tokens, ids without a token."""
    BLANK = 1
    NEWLINE = 2
    LETTER = 3
    DIGIT = 4
    UNDERSCORE = 5
    OPEN_BRACKET = 6
    CLOSE_BRACKET = 7
    QUOTE = 8
    OPERATOR = 9
    PUNCTUATION = 10
    CONTROL = 11
    NON_ASCII = 12


class Fact(enum.IntEnum):
    """Columns of the table [vocab, facts]. The tail of a token is its text after its last newline, or all of it."""

    CHARACTER_CLASS = 0
    NEWLINES = 1
    """Newlines in the token."""
    TAIL_LENGTH = 2
    """Bytes of the tail."""
    TAIL_INDENT = 3
    """Width of the blanks the tail begins with; a tab is `TAB_WIDTH` wide."""
    TAIL_CLASS = 4
    """Class of the tail's first character that is not blank; `NONE` when it has none."""
    BRACKET_DELTA = 5
    """Opening minus closing brackets."""
    IS_SEPARATOR = 6
    """1 for the token that opens a document."""


class Field(enum.IntEnum):
    """What is embedded for every token, in the order of the tables."""

    CHARACTER_CLASS = 0
    LINE_OPENING = 1
    """Class of the first character of the line that is not blank: comment, bracket, word …"""
    COLUMN = 2
    """Bytes of the line so far, this token included."""
    INDENTATION = 3
    """Width of the blanks the line begins with."""
    BRACKET_DEPTH = 4
    """Brackets open so far; closing one that was never opened leaves 0."""
    LINE_NUMBER = 5
    """⌊log2(1 + newlines so far)⌋."""
    DOCUMENT_POSITION = 6
    """⌊log2(1 + tokens before)⌋."""


TAB_WIDTH = 4
MIN_BUCKETS = len(CharacterClass)
"""Least num_buckets: every class needs its own."""
