"""Packed rows: a seeded stream of documents cut into rows of T + 1 tokens, resumable to the row.

One epoch, in three steps that depend only on (seed, epoch):

1. documents are shuffled and laid end to end, each opened by its separator:   ␞ d₇ ␞ d₂ ␞ …  ␞
2. row r holds positions r·T … r·T + T of that stream, so every transition is a target exactly once; a remainder shorter
   than a row is left out of this epoch (another one in the next);
3. rows are shuffled, so that a batch does not hold consecutive pieces of one document.

Targets: position t predicts t + 1 and **every target counts** (no −100, no padding). The last token of a document
predicts the next separator: the end. A separator predicts the first token of the document it opens. It carries that
document's id, so with isolated documents the first token is predicted from the separator alone, which is what
generation starts from; nanochat's BOS and Megatron-LM's default (`eod_mask_loss` off) count it too.

Shuffles sort raw PCG64 output (SeedSequence of seed, epoch, purpose): NumPy guarantees both streams across versions
and platforms, unlike `Generator.permutation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lanewise.errors import DataError
from lanewise.train.data.corpus import Corpus

_DOCUMENTS, _ROWS = 0, 1

State = dict[str, int | str]
"""JSON-safe position of a loader."""

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch, int64 [B, T] each.

    Attributes:
        tokens: inputs.
        targets: the token after each input; all of them count.
        document_ids: index in the corpus of the document each input belongs to; a separator belongs to the one it opens.
    """

    tokens: _Ints
    targets: _Ints
    document_ids: _Ints


class Loader:
    """Endless micro-batches of packed rows; the same arguments give the same batches everywhere.

    Args:
        corpus: at least one row of tokens.
        micro_batch_size: B.
        sequence_length: T.
        seed: of both shuffles.

    Raises:
        DataError: the corpus is shorter than one row.
    """

    def __init__(
        self, corpus: Corpus, *, micro_batch_size: int, sequence_length: int, seed: int
    ) -> None:
        self._corpus = corpus
        self._micro_batch_size = micro_batch_size
        self._sequence_length = sequence_length
        self._seed = seed
        self.rows_per_epoch: Final = corpus.num_targets // sequence_length
        if self.rows_per_epoch == 0:
            raise DataError(
                f"{corpus.num_targets} tokens make no row of sequence_length {sequence_length}"
            )
        self._rows_taken = 0
        self._epoch = _Epoch(corpus, sequence_length, seed, 0)

    def next(self) -> Batch:
        """The next micro-batch; an epoch that ends inside it goes on with the next one."""
        rows = np.empty((self._micro_batch_size, self._sequence_length + 1), dtype=np.int64)
        document_ids = np.empty((self._micro_batch_size, self._sequence_length), dtype=np.int64)
        for b in range(self._micro_batch_size):
            epoch, index = divmod(self._rows_taken, self.rows_per_epoch)
            if epoch != self._epoch.number:
                self._epoch = _Epoch(self._corpus, self._sequence_length, self._seed, epoch)
            self._epoch.fill(index, rows[b], document_ids[b])
            self._rows_taken += 1
        return Batch(
            tokens=np.ascontiguousarray(rows[:, :-1]),
            targets=np.ascontiguousarray(rows[:, 1:]),
            document_ids=document_ids,
        )

    def state(self) -> State:
        """Where the loader stands, for `load_state` of a loader over the same data, seed and sequence length."""
        return {**self._identity(), "rows_taken": self._rows_taken}

    def load_state(self, state: State) -> None:
        """Continue exactly where another loader stood; the micro-batch size may differ.

        Raises:
            DataError: the state belongs to other data, another seed or another sequence length.
        """
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise DataError(
                    f"cannot resume: the checkpoint was trained with {key} {state.get(key)!r}, this run has "
                    f"{mine!r}; give the same data and lane, or start a new run"
                )
        self._rows_taken = int(state["rows_taken"])

    def _identity(self) -> State:
        return {
            "data_digest": self._corpus.record.digest,
            "seed": self._seed,
            "sequence_length": self._sequence_length,
        }


class _Epoch:
    """The order of one epoch's documents and rows."""

    def __init__(self, corpus: Corpus, sequence_length: int, seed: int, number: int) -> None:
        self.number = number
        self._corpus = corpus
        self._sequence_length = sequence_length
        self._documents = _shuffled(corpus.record.num_documents, seed, number, _DOCUMENTS)
        lengths = np.diff(corpus.offsets)[self._documents]
        self._starts = np.concatenate(([0], np.cumsum(lengths)))
        self._rows = _shuffled(corpus.num_targets // sequence_length, seed, number, _ROWS)

    def fill(self, index: int, row: _Ints, document_ids: _Ints) -> None:
        """Write the T + 1 tokens of the epoch's row `index` and the document ids of its T inputs."""
        position = int(self._rows[index]) * self._sequence_length
        place = int(np.searchsorted(self._starts, position, side="right")) - 1
        filled = 0
        while filled < len(row):
            if place == len(self._documents):
                row[filled] = self._corpus.separator_id  # closes the epoch; only ever a target
                break
            document = int(self._documents[place])
            begin = int(self._corpus.offsets[document]) + position - int(self._starts[place])
            end = int(self._corpus.offsets[document + 1])
            count = min(end - begin, len(row) - filled)
            row[filled : filled + count] = self._corpus.tokens[begin : begin + count]
            document_ids[filled : filled + count] = document
            filled += count
            position += count
            place += 1


def _shuffled(count: int, seed: int, epoch: int, purpose: int) -> _Ints:
    generator = np.random.PCG64(np.random.SeedSequence((seed, epoch, purpose)))
    order: _Ints = np.argsort(generator.random_raw(count), kind="stable").astype(np.int64)
    return order
