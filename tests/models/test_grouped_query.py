"""Grouped-query attention against the formula and torch's own grouped heads."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lanewise.models.grouped_query import GroupedQueryAttention
from lanewise.models.layers import Context
from tests.models.micro import block_of, inputs

DOCUMENTS = torch.tensor([[0, 1, 1, 1, 2, 3, 3, 3, 3, 4]])
"""Documents of 1, 3, 1, 4 and 1 tokens."""


def grouped_block(**changes: object) -> GroupedQueryAttention:
    block = block_of("G", **{f"model__grouped_query__{key}": v for key, v in changes.items()})
    assert isinstance(block, GroupedQueryAttention)
    if block.q_norm is not None and block.k_norm is not None:
        with torch.no_grad():  # all ones would hide a weight that is not applied
            block.q_norm.weight.copy_(torch.linspace(0.5, 1.5, block.spec.head_dim))
            block.k_norm.weight.copy_(torch.linspace(1.2, 0.2, block.spec.head_dim))
    return block


def turned(vector: Tensor, position: int, theta: float) -> Tensor:
    """Coordinates i and D/2 + i turn by position · theta^(−2i/D); cos and sin are rounded to fp32 as the table is."""
    size = len(vector)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size // 2):
        angle = torch.tensor(position * theta ** (-2 * i / size), dtype=torch.float64)
        cos, sin = angle.cos().float().item(), angle.sin().float().item()
        j = size // 2 + i
        matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = cos, -sin, sin, cos
    return matrix @ vector


def oracle(block: GroupedQueryAttention, x: Tensor, documents: Tensor | None) -> Tensor:
    """One query of one head at a time over the keys it may see."""
    spec = block.spec
    head_dim, share = spec.head_dim, spec.num_heads // spec.num_kv_heads

    def project(linear: torch.nn.Module, norm: torch.nn.Module | None, turn: bool) -> list:
        heads = []
        for t, token in enumerate(x[0]):
            vectors = list((linear.weight @ token).split(head_dim))
            if norm is not None:
                vectors = [u / (u.square().mean() + norm.eps).sqrt() * norm.weight for u in vectors]
            heads.append([turned(u, t, spec.rope_theta) if turn else u for u in vectors])
        return heads

    q = project(block.q, block.q_norm, turn=True)
    k = project(block.k, block.k_norm, turn=True)
    v = project(block.v, None, turn=False)
    rows = []
    for t in range(x.shape[1]):
        seen = [s for s in range(t + 1) if documents is None or documents[0, s] == documents[0, t]]
        heads = []
        for h in range(spec.num_heads):
            scores = torch.stack([q[t][h] @ k[s][h // share] / head_dim**0.5 for s in seen])
            weights = scores.exp() / scores.exp().sum()
            heads.append(sum(w * v[s][h // share] for w, s in zip(weights, seen, strict=True)))
        rows.append(block.out.weight @ torch.cat(heads))
    return torch.stack(rows)[None]


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_is_the_formula(num_kv_heads: int, qk_norm: bool, documents: Tensor | None) -> None:
    block = grouped_block(num_kv_heads=num_kv_heads, qk_norm=qk_norm)
    x = inputs(10)
    with torch.no_grad():
        found = block(x, Context(document_ids=documents)).delta
        torch.testing.assert_close(found, oracle(block, x, documents), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("length", [1, 63])
def test_odd_lengths_are_torchs_grouped_attention(length: int) -> None:
    block = grouped_block()
    x = inputs(length)
    with torch.no_grad():
        q, k, v = block._project(x, start=0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        expected = block.out(attended.transpose(1, 2).flatten(2))
        torch.testing.assert_close(block(x).delta, expected, rtol=1e-12, atol=1e-12)


def test_gradients_with_norms_and_documents_match_finite_differences() -> None:
    block = grouped_block(qk_norm=True)
    context = Context(document_ids=torch.tensor([[0, 0, 1, 1]]))
    names = [name for name, _ in block.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in block.parameters())

    def delta(x: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(block, parameters, (x, context)).delta

    assert torch.autograd.gradcheck(delta, (inputs(4).requires_grad_(), *values), fast_mode=True)


def test_positions_past_the_training_length_go_on() -> None:
    block, longer = grouped_block(), block_of("G", batch__sequence_length=25)
    longer.load_state_dict(block.state_dict())
    x, state, deltas = inputs(25), None, []
    with torch.no_grad():
        for piece in x.split([7, 7, 1, 10], dim=1):  # the micro lane trains on 10 tokens
            output, state = block.extend(piece, state)
            deltas.append(output.delta)
        torch.testing.assert_close(torch.cat(deltas, dim=1), longer(x).delta)


def test_the_cache_has_one_row_per_key_head_and_is_never_changed() -> None:
    block, x = grouped_block(num_kv_heads=1), inputs(6)
    with torch.no_grad():
        _, state = block.extend(x[:, :4], None)
        kept = [part.clone() for part in state]
        first, _ = block.extend(x[:, 4:], state)
        again, _ = block.extend(x[:, 4:], state)
    assert [list(part.shape) for part in state] == [[1, 1, 4, 4], [1, 1, 4, 4]]
    assert all(torch.equal(part, before) for part, before in zip(state, kept, strict=True))
    assert torch.equal(first.delta, again.delta)
