import hashlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lanewise.errors import DataError
from lanewise.receipts.schema import DataRecord
from lanewise.train.data.corpus import Corpus
from lanewise.train.data.packing import Batch, Loader
from lanewise.train.data.tokens import ByteTokenizer

SEPARATOR = 256


def corpus_of(*texts: bytes, digest: str = "sha256:" + "0" * 64) -> Corpus:
    pieces = [token for text in texts for token in (SEPARATOR, *text)]
    record = DataRecord(
        source="test",
        tokenizer="bytes",
        num_documents=len(texts),
        num_tokens=len(pieces),
        digest=digest,
    )
    offsets = np.concatenate(([0], np.cumsum([1 + len(text) for text in texts])))
    return Corpus(record, np.array(pieces, dtype=np.uint16), offsets, ByteTokenizer())


def loader_of(corpus: Corpus, *, batch: int = 2, length: int = 4, seed: int = 0) -> Loader:
    return Loader(corpus, micro_batch_size=batch, sequence_length=length, seed=seed)


def same(one: Batch, other: Batch) -> bool:
    return (
        np.array_equal(one.tokens, other.tokens)
        and np.array_equal(one.targets, other.targets)
        and np.array_equal(one.document_ids, other.document_ids)
    )


def epoch_rows(loader: Loader) -> list[tuple[int, ...]]:
    """T + 1 tokens of every row of one epoch, from a loader of batch size 1."""
    rows = []
    for _ in range(loader.rows_per_epoch):
        batch = loader.next()
        rows.append((*batch.tokens[0].tolist(), int(batch.targets[0, -1])))
    return rows


corpora = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=6).map(
    lambda texts: corpus_of(*texts)
)
small_corpora = st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=4).map(
    lambda texts: corpus_of(*texts)
)
seeds = st.integers(0, 2**32)


def test_one_document_in_order_every_target_counts():
    batch = loader_of(corpus_of(b"abc"), batch=1).next()
    assert batch.tokens.tolist() == [[SEPARATOR, *b"abc"]]
    assert batch.targets.tolist() == [[*b"abc", SEPARATOR]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 0]]
    dtypes = {array.dtype for array in (batch.tokens, batch.targets, batch.document_ids)}
    assert dtypes == {np.dtype(np.int64)}


def test_a_boundary_inside_a_row():
    """The last token predicts the separator; the separator opens, and belongs to, the next document."""
    corpus = corpus_of(b"ab", b"xyz")
    batches = (loader_of(corpus, batch=1, length=7, seed=seed).next() for seed in range(20))
    batch = next(batch for batch in batches if batch.document_ids[0, 0] == 0)
    assert batch.tokens.tolist() == [[SEPARATOR, *b"ab", SEPARATOR, *b"xyz"]]
    assert batch.targets.tolist() == [[*b"ab", SEPARATOR, *b"xyz", SEPARATOR]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 1, 1, 1]]


@settings(deadline=None)
@given(corpus=small_corpora, length=st.integers(1, 9), seed=seeds)
def test_an_epoch_is_whole_documents_laid_end_to_end_and_cut_with_stride_t(
    corpus: Corpus, length: int, seed: int
):
    if corpus.num_targets < length:
        with pytest.raises(DataError, match="make no row"):
            loader_of(corpus, length=length)
        return
    loader = loader_of(corpus, batch=1, length=length, seed=seed)
    rows = Counter(epoch_rows(loader))
    documents = [
        tuple(corpus.tokens[corpus.offsets[i] : corpus.offsets[i + 1]].tolist())
        for i in range(corpus.record.num_documents)
    ]

    def cut(order: tuple[int, ...]) -> Counter[tuple[int, ...]]:
        stream = (*(token for i in order for token in documents[i]), SEPARATOR)
        starts = range(0, loader.rows_per_epoch * length, length)
        return Counter(stream[start : start + length + 1] for start in starts)

    # Oracle: one of the possible orders of the documents gives exactly these rows.
    assert any(rows == cut(order) for order in itertools.permutations(range(len(documents))))


@settings(deadline=None)
@given(corpus=corpora, seed=seeds, batch=st.integers(1, 5))
def test_ids_tell_the_document_of_every_input(corpus: Corpus, seed: int, batch: int):
    loader = loader_of(corpus, batch=batch, length=2, seed=seed)
    for _ in range(10):
        got = loader.next()
        for tokens, ids in zip(got.tokens, got.document_ids, strict=True):
            for t in range(2):
                begin, end = corpus.offsets[ids[t]], corpus.offsets[ids[t] + 1]
                assert tokens[t] in corpus.tokens[begin:end]
            if ids[0] != ids[1]:
                assert tokens[1] == SEPARATOR


@settings(deadline=None)
@given(
    corpus=corpora,
    seed=seeds,
    batch=st.integers(1, 4),
    before=st.integers(0, 12),
    after=st.integers(1, 12),
)
def test_interrupted_anywhere_it_goes_on_bitwise(
    corpus: Corpus, seed: int, batch: int, before: int, after: int
):
    whole = loader_of(corpus, batch=batch, length=2, seed=seed)
    for _ in range(before):
        whole.next()
    resumed = loader_of(corpus, batch=batch, length=2, seed=seed)
    resumed.next()
    resumed.load_state(whole.state())
    assert all(same(resumed.next(), whole.next()) for _ in range(after))
    assert resumed.state() == whole.state()


@settings(deadline=None)
@given(corpus=corpora, seed=seeds)
def test_the_micro_batch_size_only_groups_rows(corpus: Corpus, seed: int):
    ones = loader_of(corpus, batch=1, length=2, seed=seed)
    threes = loader_of(corpus, batch=3, length=2, seed=seed)
    for _ in range(4):
        batch = threes.next()
        rows = [ones.next() for _ in range(3)]
        assert np.array_equal(batch.tokens, np.concatenate([row.tokens for row in rows]))
        assert np.array_equal(batch.targets, np.concatenate([row.targets for row in rows]))


def test_epochs_and_seeds_differ_and_rows_are_shuffled():
    corpus = corpus_of(*(bytes([65 + i]) * 30 for i in range(20)))
    loader = loader_of(corpus, batch=1, length=10)
    first, second = epoch_rows(loader), epoch_rows(loader)
    assert first != second
    assert first != epoch_rows(loader_of(corpus, batch=1, length=10, seed=1))
    neighbours = sum(a[-2] == b[0] for a, b in itertools.pairwise(first))
    assert neighbours < len(first) / 2


def test_the_same_seed_gives_the_same_rows_on_every_platform():
    corpus = corpus_of(*(bytes(range(i, i + 40)) for i in range(50)))
    loader = loader_of(corpus, batch=4, length=16, seed=123)
    content = b"".join(loader.next().tokens.astype("<i8").tobytes() for _ in range(80))
    assert hashlib.sha256(content).hexdigest()[:16] == "64f0604152aa95c1"


@pytest.mark.parametrize(
    ("digit", "length", "seed", "key"),
    [("0", 4, 1, "seed"), ("0", 3, 0, "sequence_length"), ("1", 4, 0, "data_digest")],
)
def test_a_state_of_something_else_is_refused(digit: str, length: int, seed: int, key: str):
    state = loader_of(corpus_of(b"abcdefgh")).state()
    corpus = corpus_of(b"abcdefgh", digest="sha256:" + digit * 64)
    with pytest.raises(DataError, match=f"cannot resume: .* {key} "):
        loader_of(corpus, length=length, seed=seed).load_state(state)


def test_mapped_tokens_give_the_same_batches(tmp_path: Path):
    corpus = corpus_of(b"hello", b"world, this is packed")
    np.save(tmp_path / "tokens.npy", corpus.tokens)
    mapped = Corpus(
        corpus.record,
        np.load(tmp_path / "tokens.npy", mmap_mode="r"),
        corpus.offsets,
        corpus.tokenizer,
    )
    one, other = loader_of(corpus), loader_of(mapped)
    assert all(same(one.next(), other.next()) for _ in range(20))
