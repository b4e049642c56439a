"""A corpus: every document's tokens in memory (or mapped from a prepared folder), with its identity.

Layout of `Corpus.tokens`: each document is its separator followed by its tokens. The separator *opens* a document, so
the stream reads  ␞ doc₀ ␞ doc₁ ␞ …  and one more separator closes an epoch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lanewise.errors import DataError
from lanewise.lane.digest import digest
from lanewise.lane.schema import DataSpec
from lanewise.receipts.schema import DataRecord
from lanewise.train.data.documents import Documents, FileEntry, find_documents
from lanewise.train.data.tokens import TokenIds, Tokenizer, load_tokenizer

PACKING_RULE: Final = "separator-first, documents and rows shuffled per epoch, stride T, 1"
"""Name and version of what `packing` does; part of every data digest."""

_DOCUMENTS_PER_BATCH: Final = 512
_COUNTED_AT_ONCE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokens of all documents and what identifies them.

    Attributes:
        record: what receipts keep.
        tokens: unsigned ids, documents one after another, each opened by its separator.
        offsets: int64 [num_documents + 1]; document i is `tokens[offsets[i]:offsets[i + 1]]`.
        tokenizer: turns ids back into text.
    """

    record: DataRecord
    tokens: TokenIds
    offsets: npt.NDArray[np.int64]
    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        """Every id is below it; the separator is one of them."""
        return self.tokenizer.vocab_size

    @property
    def separator_id(self) -> int:
        """The id that opens every document."""
        return self.tokenizer.separator_id

    @property
    def num_targets(self) -> int:
        """Tokens the model predicts in one epoch: every document's tokens and the separator after each."""
        return len(self.tokens)


def open_corpus(spec: DataSpec, *, path: str | None, sequence_length: int) -> Corpus:
    """Read, tokenise and identify the training data.

    Args:
        spec: the lane's data recipe.
        path: replaces `spec.source`: a text, .jsonl or .parquet file, a folder of them, or a folder written by
            `lanewise data prepare`; None keeps the lane's.
        sequence_length: T of one row, in tokens.

    Raises:
        DataError: data is missing, empty, binary, damaged, or shorter than one row.
    """
    from lanewise.train.data.prepared import is_prepared, read_prepared  # it builds on Corpus

    source = path or spec.source
    if is_prepared(Path(source).expanduser()):
        corpus = read_prepared(Path(source).expanduser(), tokenizer_name=spec.tokenizer)
    else:
        documents = find_documents(source, text_field=spec.text_field)
        corpus = build_corpus(documents, load_tokenizer(spec.tokenizer))
    if corpus.num_targets < sequence_length:
        raise DataError(
            f"{corpus.record.source}: {corpus.num_targets} tokens in {corpus.record.num_documents} "
            f"documents; one row of sequence_length {sequence_length} needs {sequence_length}; "
            "give more data or lower batch.sequence_length"
        )
    return corpus


def build_corpus(documents: Documents, tokenizer: Tokenizer) -> Corpus:
    """Tokenise documents and identify the result.

    Raises:
        DataError: a document cannot be read, or there is no text at all.
    """
    separator = np.array([tokenizer.separator_id], np.min_scalar_type(tokenizer.vocab_size - 1))
    pieces: list[TokenIds] = []
    lengths: list[int] = []
    for batch in _batches(documents):
        for token_ids in tokenizer.encode(batch):
            pieces += (separator, token_ids)
            lengths.append(1 + len(token_ids))
    if not lengths:
        raise DataError(f"{documents.label}: no text in it; give data that is not empty")
    tokens = np.concatenate(pieces)
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    record = DataRecord(
        source=documents.label,
        tokenizer=tokenizer.name,
        num_documents=len(lengths),
        num_tokens=len(tokens),
        digest=_identity(documents.files, tokenizer),
        unigram_entropy_nats=unigram_entropy_nats(tokens, tokenizer.vocab_size),
    )
    return Corpus(record, tokens, offsets, tokenizer)


def check_vocab(corpus: Corpus, vocab_size: int) -> None:
    """Refuse data whose ids the model has no embedding for.

    Raises:
        DataError: the tokenizer needs more ids than the lane has.
    """
    if corpus.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer {corpus.record.tokenizer!r} needs {corpus.vocab_size} ids (separator "
            f"{corpus.separator_id} included) and the lane has model.vocab_size = {vocab_size}; "
            f"set model.vocab_size to at least {corpus.vocab_size}, or use a smaller tokenizer"
        )


def unigram_entropy_nats(tokens: TokenIds, vocab_size: int) -> float:
    """Entropy −Σ p log p of the token frequencies, in nats: the loss of a model that knows nothing but them.

    The stream the model predicts holds every token once and one separator per document, as `tokens` does.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), _COUNTED_AT_ONCE):  # bincount widens its input to int64
        counts += np.bincount(tokens[start : start + _COUNTED_AT_ONCE], minlength=vocab_size)
    shares = counts[counts > 0] / len(tokens)
    return float(-(shares * np.log(shares)).sum()) + 0.0


def _batches(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(documents)
    while batch := list(itertools.islice(rest, _DOCUMENTS_PER_BATCH)):
        yield batch


def _identity(files: Iterable[FileEntry], tokenizer: Tokenizer) -> str:
    body: dict[str, Any] = {
        "files": [[entry.name, entry.size_bytes, entry.sha256] for entry in files],
        "tokenizer": tokenizer.digest,
        "separator_id": tokenizer.separator_id,
        "packing": PACKING_RULE,
    }
    return digest(body)
