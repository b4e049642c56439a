"""N-gram hash embedding: what the last few tokens were, looked up by hash and added to the token embedding.

    h[n, j](t) = (m_0 x_t  ⊕  m_1 x_{t−1}  ⊕ … ⊕  m_{n−1} x_{t−n+1})  mod  prime[n, j]       one table per order n, head j
    out(t)     = W · concat over (n, j) of table[n, j][h[n, j](t)]                       W starts at zero

⊕ is XOR; the multipliers m are odd, fixed and own to each (n, j, position). Multi-head hashing of n-grams: Engram,
arXiv 2601.07372, §2.2; XOR of odd multipliers modulo primes: cppmega (docs/NAM56R.md 1.3, extras).
Positions before the start of the row or of the document read the pad id `vocab_size`, which no token has, so that a
start is told from any text.

Multipliers are below 2³¹ and ids below 2³¹ (checked), so products stay below 2⁶² and no sign or wrap-around depends on a
device. The gradient of the tables is dense: AdamW with decaying moments also moves rows that a step does not visit, and
clipping takes the norm over all of them; at 128 M entries that gradient is 0.5 GB, as for any matrix of this size.
Legend: B batch, T sequence, d hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.lane.primes import largest_primes
from lanewise.lane.schema import NgramEmbeddingSpec
from lanewise.models.layers import Linear, init_normal

_ID_LIMIT = 1 << 31
_MASK_64 = (1 << 64) - 1


class NgramEmbedding(nn.Module):
    """Tables of all orders and heads, and their projection.

    Args:
        spec: orders and sizes.
        hidden_size: d.
        vocab_size: ids are below it; it is the pad id.

    Attributes:
        tables: fp32 [orders · heads · num_rows, head_dim], table after table, heads fastest; one parameter, so that one
            gather serves all tables.
        proj: concatenation → d.

    Raises:
        ValueError: the vocabulary has 2³¹ ids or more.
    """

    multipliers: Tensor
    primes: Tensor
    offsets: Tensor

    def __init__(self, spec: NgramEmbeddingSpec, *, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        if vocab_size >= _ID_LIMIT:
            raise ValueError(
                f"vocab_size = {vocab_size} does not fit the n-gram hash; use at most {_ID_LIMIT - 1}"
            )
        self.pad_id = vocab_size
        self.table_orders = [order for order in spec.orders for _ in range(spec.num_heads)]
        num_tables = len(self.table_orders)
        self.tables = nn.Parameter(torch.empty(num_tables * spec.num_rows, spec.head_dim))
        self.proj = Linear(num_tables * spec.head_dim, hidden_size)
        primes = torch.tensor(largest_primes(num_tables, at_most=spec.num_rows))
        self.register_buffer("primes", primes, persistent=False)
        self.register_buffer("offsets", torch.arange(num_tables) * spec.num_rows, persistent=False)
        self.register_buffer("multipliers", _multipliers(self.table_orders), persistent=False)

    def reset_parameters(self, *, std: float, generator: torch.Generator) -> None:
        """Draw the tables from N(0, std²); the projection starts at zero, so the start is that of a model without."""
        init_normal(self.tables, std, generator)
        nn.init.zeros_(self.proj.weight)

    def forward(
        self, tokens: Tensor, document_ids: Tensor | None = None, *, last: int | None = None
    ) -> Tensor:
        """What to add to the embeddings of the last tokens.

        Args:
            tokens: int64 [B, T], a row or a text from its start.
            document_ids: int64 [B, T], changing where a document begins; None when every row is one document.
            last: how many of the positions are wanted, from the end; None is all.

        Returns:
            [B, last, d].
        """
        rows = self.row_ids(tokens, document_ids)
        rows = rows if last is None else rows[:, -last:]
        found = F.embedding(rows, self.tables)
        projected: Tensor = self.proj(found.flatten(-2))
        return projected

    def row_ids(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Row of `tables` that every position reads in every table, int64 [B, T, orders · heads]."""
        hashes = torch.zeros(
            *tokens.shape, len(self.table_orders), dtype=torch.int64, device=tokens.device
        )
        for back in range(max(self.table_orders)):
            earlier = self._earlier(tokens, document_ids, back)
            # Beyond a table's order its multiplier is 0, and XOR with 0 changes nothing.
            hashes = hashes ^ (earlier.unsqueeze(-1) * self.multipliers[back])
        return hashes % self.primes + self.offsets

    def _earlier(self, tokens: Tensor, document_ids: Tensor | None, back: int) -> Tensor:
        """The token `back` positions ago in the same document, else the pad id."""
        if back == 0:
            return tokens
        length = tokens.shape[1]
        back = min(back, length)
        earlier = F.pad(tokens[:, : length - back], (back, 0), value=self.pad_id)
        if document_ids is None:
            return earlier
        same = F.pad(
            document_ids[:, back:] == document_ids[:, : length - back], (back, 0), value=False
        )
        return torch.where(same, earlier, self.pad_id)


def _multipliers(table_orders: list[int]) -> Tensor:
    """Odd multipliers below 2³¹, int64 [max order, tables]; 0 where a table's order ends."""
    return torch.tensor(
        [
            [
                _mix((table << 32) | back) >> 33 | 1 if back < order else 0
                for table, order in enumerate(table_orders)
            ]
            for back in range(max(table_orders))
        ]
    )


def _mix(index: int) -> int:
    """Number `index` of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), seeded with 0: 64 well-mixed bits."""
    z = (index + 1) * 0x9E3779B97F4A7C15 & _MASK_64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK_64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK_64
    return z ^ z >> 31
