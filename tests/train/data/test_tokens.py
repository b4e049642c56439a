from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lanewise.errors import DataError
from lanewise.train.data.tokens import ByteTokenizer, JsonTokenizer, load_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog and the fox sleeps"


def train(path: Path, special_tokens: list[str]) -> Path:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", *special_tokens])
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(path))
    return path


@settings(deadline=None)
@given(text=st.text(alphabet="az\n\0ß€😀"))
def test_bytes_round_trip(text: str):
    tokenizer = ByteTokenizer()
    [token_ids] = tokenizer.encode([text.encode()])
    assert token_ids.dtype == np.uint16
    assert token_ids.tolist() == list(text.encode())
    assert tokenizer.decode([256, *token_ids.tolist()]) == text


def test_a_tokenizer_file_without_an_end_token_gets_one_more_id(tmp_path: Path):
    tokenizer = JsonTokenizer(train(tmp_path / "t.json", []))
    [token_ids] = tokenizer.encode([TEXT.encode()])
    assert tokenizer.separator_id == tokenizer.vocab_size - 1
    assert token_ids.max() < tokenizer.separator_id
    assert tokenizer.decode([tokenizer.separator_id, *token_ids.tolist()]) == TEXT
    assert tokenizer.name == "t.json"
    assert tokenizer.digest.startswith("sha256:")


def test_a_tokenizer_files_own_end_token_separates(tmp_path: Path):
    tokenizer = JsonTokenizer(train(tmp_path / "t.json", ["<|endoftext|>"]))
    assert tokenizer.separator_id == 1
    assert tokenizer.vocab_size > 2


def test_the_dtype_holds_the_vocabulary(tmp_path: Path):
    tokenizer = JsonTokenizer(train(tmp_path / "t.json", []))
    [token_ids] = tokenizer.encode([b"fox"])
    assert token_ids.dtype == np.uint8
    tokenizer.vocab_size = 70_000
    [token_ids] = tokenizer.encode([b"fox"])
    assert token_ids.dtype == np.uint32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no tokenizer at '.*t\.json'; give a `tokenizers` JSON file, or `bytes`"),
        ("{", r"t\.json: not a tokenizer JSON file"),
        ('{"a": 1}', r"t\.json: JSON, but not a tokenizer"),
    ],
)
def test_a_bad_tokenizer_file_is_named(tmp_path: Path, content: str | None, message: str):
    path = tmp_path / "t.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_tokenizer(str(path))


def test_bytes_is_a_name():
    assert load_tokenizer("bytes").separator_id == 256
