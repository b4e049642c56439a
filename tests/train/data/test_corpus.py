import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lanewise.errors import DataError
from lanewise.lane.schema import DataSpec
from lanewise.train.data.corpus import check_vocab, open_corpus, unigram_entropy_nats


def folder_of(path: Path, *texts: str) -> Path:
    path.mkdir()
    for index, text in enumerate(texts):
        (path / f"{index}.txt").write_text(text, encoding="utf-8")
    return path


def test_documents_are_opened_by_the_separator(tmp_path: Path):
    corpus = open_corpus(
        DataSpec(), path=str(folder_of(tmp_path / "d", "ab", "c")), sequence_length=4
    )
    assert corpus.tokens.tolist() == [256, 97, 98, 256, 99]
    assert corpus.offsets.tolist() == [0, 3, 5]
    assert (corpus.vocab_size, corpus.separator_id) == (257, 256)
    assert (corpus.record.num_documents, corpus.record.num_tokens) == (2, 5)
    assert (corpus.record.source, corpus.record.tokenizer) == ("d", "bytes")


def test_the_lanes_own_source_is_used_when_no_path_is_given(tmp_path: Path):
    spec = DataSpec(source=str(folder_of(tmp_path / "own", "abcdef")))
    assert open_corpus(spec, path=None, sequence_length=4).record.source == "own"


def test_digest_follows_content_and_names_but_not_place(tmp_path: Path):
    def digest(path: Path) -> str:
        return open_corpus(DataSpec(), path=str(path), sequence_length=2).record.digest

    original = folder_of(tmp_path / "d", "hello", "world")
    elsewhere = tmp_path / "other" / "renamed"
    shutil.copytree(original, elsewhere)
    assert digest(elsewhere) == digest(original)
    (elsewhere / "1.txt").write_text("World", encoding="utf-8")
    changed = digest(elsewhere)
    shutil.copytree(original, tmp_path / "moved")
    (tmp_path / "moved" / "1.txt").rename(tmp_path / "moved" / "2.txt")
    assert len({digest(original), changed, digest(tmp_path / "moved")}) == 3


def test_data_shorter_than_one_row_says_how_much_there_is_and_how_much_is_needed(tmp_path: Path):
    path = str(folder_of(tmp_path / "d", "abc"))
    assert open_corpus(DataSpec(), path=path, sequence_length=4).num_targets == 4
    with pytest.raises(DataError, match=r"d: 4 tokens in 1 documents; one row .* 5 needs 5"):
        open_corpus(DataSpec(), path=path, sequence_length=5)


def test_empty_data_is_refused(tmp_path: Path):
    path = tmp_path / "empty.txt"
    path.touch()
    with pytest.raises(DataError, match=r"empty\.txt: no text in it"):
        open_corpus(DataSpec(), path=str(path), sequence_length=1)


def test_a_vocabulary_larger_than_the_lanes_is_refused(tmp_path: Path):
    corpus = open_corpus(DataSpec(), path=str(folder_of(tmp_path / "d", "abc")), sequence_length=2)
    check_vocab(corpus, 257)
    with pytest.raises(DataError, match=r"needs 257 ids .* model\.vocab_size = 256; set"):
        check_vocab(corpus, 256)


def test_unigram_entropy_of_known_streams():
    uniform = np.arange(8, dtype=np.uint16).repeat(5)
    assert unigram_entropy_nats(uniform, 300) == pytest.approx(math.log(8))
    assert unigram_entropy_nats(np.zeros(7, dtype=np.uint16), 3) == 0.0
    quarter = np.array([0, 1, 1, 1], dtype=np.uint16)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert unigram_entropy_nats(quarter, 2) == pytest.approx(expected)


@settings(deadline=None)
@given(
    token_ids=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    shift=st.integers(0, 20),
)
def test_unigram_entropy_knows_only_frequencies(token_ids: list[int], shift: int):
    tokens = np.array(token_ids, dtype=np.uint16)
    entropy = unigram_entropy_nats(tokens, 64)
    assert 0 <= entropy <= math.log(len(set(token_ids))) + 1e-12
    assert unigram_entropy_nats(tokens[::-1] + shift, 64) == pytest.approx(entropy, abs=1e-12)


def test_the_default_corpus_is_the_standard_library():
    corpus = open_corpus(DataSpec(), path=None, sequence_length=64)
    assert corpus.record.source == "stdlib"
    assert corpus.record.num_tokens > 1_000_000
    assert corpus.record.unigram_entropy_nats is not None
    assert 2.5 < corpus.record.unigram_entropy_nats < 4.0
    assert int(np.count_nonzero(corpus.tokens == 256)) == corpus.record.num_documents
