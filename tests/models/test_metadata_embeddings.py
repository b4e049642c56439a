"""Metadata embeddings against a reader that walks over the text byte by byte."""

import math

import pytest
import torch

from lanewise.lane.structure import CharacterClass, Fact, Field
from lanewise.lane.taxes import MetadataEmbeddingsSpec
from lanewise.models.metadata_embeddings import MetadataEmbeddings
from lanewise.train.data.token_facts import token_facts
from lanewise.train.data.tokens import ByteTokenizer

TOKENIZER = ByteTokenizer()
VOCAB = 260
CODE = b"def f(x):\n    # (a\n\treturn [x)]]\n\n  y = {1:'\xc3\xa4'}\n"


def embeddings(num_buckets: int = 16) -> MetadataEmbeddings:
    facts = torch.from_numpy(token_facts(TOKENIZER, VOCAB))
    module = MetadataEmbeddings(
        MetadataEmbeddingsSpec(num_buckets=num_buckets),
        hidden_size=6,
        vocab_size=VOCAB,
        token_facts=facts,
    )
    torch.nn.init.normal_(module.tables, generator=torch.Generator().manual_seed(0))
    return module.double()


def class_of(byte: int) -> CharacterClass:
    char = chr(byte)
    for members, kind in (
        ("\n", CharacterClass.NEWLINE),
        (" \t", CharacterClass.BLANK),
        ("_", CharacterClass.UNDERSCORE),
        ("([{", CharacterClass.OPEN_BRACKET),
        (")]}", CharacterClass.CLOSE_BRACKET),
        ("\"'`", CharacterClass.QUOTE),
        (".,;:?!", CharacterClass.PUNCTUATION),
    ):
        if char in members:
            return kind
    if byte >= 128:
        return CharacterClass.NON_ASCII
    if char.isalpha():
        return CharacterClass.LETTER
    return CharacterClass.DIGIT if char.isdigit() else CharacterClass.OPERATOR


def read(tokens: list[int], new_document: list[bool]) -> list[list[int]]:
    """Fields of every byte token, walking."""
    found = []
    column = indent = depth = lines = position = opening = 0
    for token, is_new in zip(tokens, new_document, strict=True):
        is_separator = token == TOKENIZER.separator_id
        if is_new or is_separator:
            column = indent = depth = lines = position = opening = 0
        kind = CharacterClass.NONE if is_separator else class_of(token)
        if kind is CharacterClass.NEWLINE:
            column = indent = opening = 0
            lines += 1
        elif kind is CharacterClass.BLANK:
            column += 1
            if not opening:
                indent += 4 if token == ord("\t") else 1
        elif not is_separator:
            column += 1
            opening = opening or kind
        depth += (kind is CharacterClass.OPEN_BRACKET) - (kind is CharacterClass.CLOSE_BRACKET)
        depth = max(depth, 0)
        by_field = {
            Field.CHARACTER_CLASS: kind,
            Field.LINE_OPENING: opening,
            Field.COLUMN: column,
            Field.INDENTATION: indent,
            Field.BRACKET_DEPTH: depth,
            Field.LINE_NUMBER: int(math.log2(1 + lines)),
            Field.DOCUMENT_POSITION: int(math.log2(1 + position)),
        }
        found.append([int(by_field[field]) for field in Field])
        position += 1
    return found


@pytest.mark.parametrize("separators", [(), (0,), (0, 7, 8, 30)])
def test_fields_are_those_of_a_reader(separators: tuple[int, ...]) -> None:
    tokens = list(CODE)
    for place in separators:
        tokens[place] = TOKENIZER.separator_id
    fields = embeddings().fields(torch.tensor([tokens, tokens[::-1]]))
    for row, text in enumerate((tokens, tokens[::-1])):
        assert fields[row].tolist() == read(text, [False] * len(text))


def test_fields_start_anew_where_documents_change() -> None:
    tokens = torch.tensor([list(CODE)])
    ids = torch.zeros_like(tokens)
    ids[:, 5:6], ids[:, 6:20], ids[:, 20:] = 3, 1, 2
    is_new = [t in (5, 6, 20) for t in range(len(CODE))]
    assert embeddings().fields(tokens, ids)[0].tolist() == read(list(CODE), is_new)


def test_a_bytes_table_says_what_it_must() -> None:
    facts = token_facts(TOKENIZER, VOCAB)
    assert facts.shape == (VOCAB, len(Fact))
    assert facts[ord("\t"), Fact.TAIL_INDENT] == 4
    assert facts[ord("\n")].tolist() == [CharacterClass.NEWLINE, 1, 0, 0, 0, 0, 0]
    assert facts[TOKENIZER.separator_id].tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert not facts[257:].any()


def test_output_is_the_sum_of_the_fields_rows_and_the_last_bucket_takes_the_rest() -> None:
    module = embeddings(num_buckets=13)
    tokens = torch.tensor([list(CODE)])
    fields = module.fields(tokens)[0]
    assert int(fields.max()) > 12
    tables = module.tables.view(len(Field), 13, 6)
    expected = torch.stack(
        [sum(tables[f, min(int(value), 12)] for f, value in enumerate(row)) for row in fields]
    )
    torch.testing.assert_close(module(tokens)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 63])
def test_a_token_changes_nothing_before_it_and_a_prefix_is_a_prefix(length: int) -> None:
    module = embeddings()
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(257, (2, length), generator=generator)
    whole = module(tokens)
    for t in range(length):
        other = tokens.clone()
        other[:, t] = (other[:, t] + 1) % 257
        torch.testing.assert_close(module(other)[:, :t], whole[:, :t], rtol=0, atol=0)
        torch.testing.assert_close(
            module(tokens[:, : t + 1], last=1), whole[:, t : t + 1], rtol=0, atol=0
        )


def test_gradients_match_finite_differences() -> None:
    module = embeddings()
    tokens = torch.tensor([list(CODE[:7])])

    def run(tables: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, {"tables": tables}, (tokens,))

    tables = module.tables.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (tables,), fast_mode=True)


def test_facts_of_another_vocabulary_are_refused_and_facts_travel_with_the_weights() -> None:
    facts = torch.from_numpy(token_facts(TOKENIZER, VOCAB))
    with pytest.raises(ValueError, match=r"must be \[vocab_size, facts\] = \[300, 7\]"):
        MetadataEmbeddings(
            MetadataEmbeddingsSpec(), hidden_size=4, vocab_size=300, token_facts=facts
        )
    assert "token_facts" in embeddings().state_dict()
