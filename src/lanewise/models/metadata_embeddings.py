"""Metadata embeddings: where a token stands in its text, embedded and added to the token embedding (a tax).

    out(t) = Σ_f table_f[min(field_f(t), num_buckets − 1)]            fields: `lanewise.lane.structure.Field`

Every field of token t is computed from the tokens up to and including t, on the device, from a table of per-token facts:
nothing is precomputed with the data, so training, evaluation and decoding see the same. With a_t = newlines of token t,

    column        running sum of tail lengths since the line began (a token with a newline begins a line)
    indentation   running sum of leading blanks, until the line's first token with text, that one included
    line opening  class of the first text of the line's first token with text
    depth         s_t − min(0, min_{j≤t} s_j) with s the running sum of bracket deltas: max(0, depth + delta), unrolled
    line number   ⌊log2(1 + Σ a)⌋,        position   ⌊log2(1 + tokens before)⌋

All of it starts anew at a separator token and where `document_ids` change. The tables start at zero, so the start is that
of a model without. The public system stores enriched structure with the data (docs/NAM56R.md 1.3: structure embeddings);
ours needs none and can be decoded with. Legend: B batch, T sequence, d hidden, f fields.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.lane.structure import CharacterClass, Fact, Field
from lanewise.lane.taxes import MetadataEmbeddingsSpec
from lanewise.models.segments import (
    document_boundaries,
    latest_starts,
    running_min,
    running_sum,
)


class MetadataEmbeddings(nn.Module):
    """One table per field.

    Args:
        spec: number of buckets.
        hidden_size: d.
        vocab_size: W.
        token_facts: int16 [W, facts], columns as `lanewise.lane.structure.Fact`.

    Attributes:
        tables: fp32 [fields · num_buckets, d], table after table.
        token_facts: a persistent buffer, so that a checkpoint carries what it was trained with.

    Raises:
        ValueError: `token_facts` is not [W, facts].
    """

    token_facts: Tensor
    offsets: Tensor

    def __init__(
        self,
        spec: MetadataEmbeddingsSpec,
        *,
        hidden_size: int,
        vocab_size: int,
        token_facts: Tensor,
    ) -> None:
        super().__init__()
        if token_facts.shape != (vocab_size, len(Fact)):
            raise ValueError(
                f"token_facts is {list(token_facts.shape)} and must be [vocab_size, facts] = "
                f"{[vocab_size, len(Fact)]}; build it with train.data.token_facts"
            )
        self.num_buckets = spec.num_buckets
        self.tables = nn.Parameter(torch.empty(len(Field) * spec.num_buckets, hidden_size))
        self.register_buffer("token_facts", token_facts.to(torch.int16))
        self.register_buffer(
            "offsets", torch.arange(len(Field)) * spec.num_buckets, persistent=False
        )

    def reset_parameters(self) -> None:
        """Everything zero: a table learns from zero, because its gradient does not depend on it."""
        nn.init.zeros_(self.tables)

    def forward(
        self, tokens: Tensor, document_ids: Tensor | None = None, *, last: int | None = None
    ) -> Tensor:
        """What to add to the embeddings of the last tokens.

        Args:
            tokens: int64 [B, T], a row or a text from its start.
            document_ids: int64 [B, T], changing where a document begins; None when only separators begin one.
            last: how many of the positions are wanted, from the end; None is all.

        Returns:
            [B, last, d].
        """
        fields = self.fields(tokens, document_ids)
        fields = fields if last is None else fields[:, -last:]
        rows = fields.clamp(max=self.num_buckets - 1) + self.offsets
        summed = F.embedding_bag(rows.flatten(0, 1), self.tables, mode="sum")
        return summed.view(*rows.shape[:2], -1)

    def fields(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Every field of every token, int64 [B, T, fields], not yet cut to the buckets."""
        facts = self.token_facts[tokens].to(torch.int64).unbind(-1)
        newlines, text_class = facts[Fact.NEWLINES], facts[Fact.TAIL_CLASS]
        documents = document_boundaries(document_ids, tokens.shape, tokens.device)
        documents = documents | (facts[Fact.IS_SEPARATOR] > 0)
        document_starts = latest_starts(documents)
        line_starts = latest_starts(documents | (newlines > 0))

        has_text = (text_class != CharacterClass.NONE).to(torch.int64)
        is_before_text = running_sum(has_text, line_starts) == has_text
        brackets = running_sum(facts[Fact.BRACKET_DELTA], document_starts)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        by_field = {
            Field.CHARACTER_CLASS: facts[Fact.CHARACTER_CLASS],
            Field.LINE_OPENING: running_sum(text_class * is_before_text, line_starts),
            Field.COLUMN: running_sum(facts[Fact.TAIL_LENGTH], line_starts),
            Field.INDENTATION: running_sum(facts[Fact.TAIL_INDENT] * is_before_text, line_starts),
            Field.BRACKET_DEPTH: brackets - running_min(brackets, document_starts).clamp(max=0),
            Field.LINE_NUMBER: _floor_log2(1 + running_sum(newlines, document_starts)),
            Field.DOCUMENT_POSITION: _floor_log2(1 + positions - document_starts),
        }
        return torch.stack([by_field[field] for field in Field], dim=-1)


def _floor_log2(values: Tensor) -> Tensor:
    """⌊log2⌋ of int64 ≥ 1, exact below 2⁵³: the exponent of a double."""
    exponents = torch.frexp(values.to(torch.float64)).exponent
    return exponents.to(torch.int64) - 1
