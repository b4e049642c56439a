"""Facts of the tokens of a tokenizer file."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lanewise.lane.structure import CharacterClass, Fact
from lanewise.train.data.token_facts import token_facts
from lanewise.train.data.tokens import ByteTokenizer, JsonTokenizer

CODE = "def f(x):\n    return [x, (x)]\n\tif x:\n        y = {x}\n" * 4


def byte_level(path: Path) -> JsonTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CODE], trainer)
    tokenizer.save(str(path))
    return JsonTokenizer(path)


def metaspace(path: Path) -> JsonTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        ["a dog a dog a dog"], trainers.BpeTrainer(vocab_size=30, show_progress=False)
    )
    tokenizer.save(str(path))
    return JsonTokenizer(path)


def test_token_bytes_put_together_are_the_text(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "t.json")
    parts = tokenizer.token_bytes()
    [ids] = tokenizer.encode([CODE.encode()])
    assert len(parts) == tokenizer.vocab_size
    assert b"".join(parts[i] for i in ids) == CODE.encode()
    assert parts[tokenizer.separator_id] == b""


def test_a_blank_before_a_word_is_kept(tmp_path: Path) -> None:
    tokenizer = metaspace(tmp_path / "t.json")
    [ids] = tokenizer.encode([b"a dog"])
    assert [tokenizer.token_bytes()[i] for i in ids] == [b" a", b" dog"]


def test_running_totals_of_facts_are_those_of_the_bytes(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "t.json")
    [ids] = tokenizer.encode([CODE.encode()])
    assert len(ids) < len(CODE)
    facts = token_facts(tokenizer, tokenizer.vocab_size + 5)[ids]
    by_byte = token_facts(ByteTokenizer(), 257)[list(CODE.encode())]
    for fact in (Fact.NEWLINES, Fact.BRACKET_DELTA):
        assert facts[:, fact].sum() == by_byte[:, fact].sum()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", [CharacterClass.NONE, 0, 0, 0, 0, 0, 0]),
        (b"  ((x", [CharacterClass.OPEN_BRACKET, 0, 5, 2, CharacterClass.OPEN_BRACKET, 2, 0]),
        (b"}\n\n \tz1", [CharacterClass.CLOSE_BRACKET, 2, 4, 5, CharacterClass.LETTER, -1, 0]),
        (b"\n    ", [CharacterClass.NEWLINE, 1, 4, 4, CharacterClass.NONE, 0, 0]),
        (b"   ", [CharacterClass.BLANK, 0, 3, 3, CharacterClass.NONE, 0, 0]),
        (b"\x00", [CharacterClass.CONTROL, 0, 1, 0, CharacterClass.CONTROL, 0, 0]),
        ("é".encode(), [CharacterClass.NON_ASCII, 0, 2, 0, CharacterClass.NON_ASCII, 0, 0]),
        (b"x" * 40_000, [CharacterClass.LETTER, 0, 32_767, 0, CharacterClass.LETTER, 0, 0]),
    ],
)
def test_facts_of_a_token(text: bytes, expected: list[int]) -> None:
    class OneToken(ByteTokenizer):
        separator_id = 1

        def token_bytes(self) -> list[bytes]:
            return [text, b""]

    facts = token_facts(OneToken(), 2)
    assert facts.dtype == np.int16
    assert facts[0].tolist() == expected
