"""M2RNN as a block: documents, decoding, and that its clip is applied."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lanewise.models.assemble import build_block
from lanewise.models.layers import Context
from lanewise.models.recurrent import Recurrent
from tests.models.extending import PIECES, extend_in_pieces
from tests.models.micro import micro_lane, reference_ops
from tests.ops.test_ssd_scan import DOCUMENTS, ids_of


def block_of(seed: int = 0, **changes: object) -> Recurrent:
    lane = micro_lane(model__pattern="R", model__num_layers=1, **changes)
    block = build_block("R", lane, model_switches={}, ops=reference_ops(lane))
    block.reset_parameters(std=0.4, output_std=0.4, generator=torch.Generator().manual_seed(seed))
    assert isinstance(block, Recurrent)
    return block.double()


def inputs(length: int = 16, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, length, 12, generator=generator, dtype=torch.float64)


def by_hand(block: Recurrent, x: Tensor) -> Tensor:
    """The block's formulas, one token and head at a time."""
    spec, p = block.spec, dict(block.named_parameters())
    num_heads, num_keys, num_values = spec.num_heads, spec.key_dim, spec.value_dim
    out = torch.empty_like(x)
    for row in range(len(x)):
        projected = x[row] @ p["in_proj.weight"].T
        channels = 2 * num_keys + num_heads * num_values
        mixed, dd_forget, gate = projected.split([channels, num_heads, num_heads * num_values], -1)
        h = torch.zeros(num_heads, num_keys, num_values, dtype=x.dtype)
        for t in range(x.shape[1]):
            filtered = p["conv_bias"].clone()
            for lag in range(min(spec.conv_kernel_size, t + 1)):
                filtered = filtered + p["conv_weight"][:, -1 - lag] * mixed[t - lag]
            filtered = filtered * torch.sigmoid(filtered)
            q, k = filtered[:num_keys], filtered[num_keys : 2 * num_keys]
            v = filtered[2 * num_keys :].view(num_heads, num_values)
            o = torch.empty_like(v)
            for head in range(num_heads):
                dt = torch.log1p(torch.exp(dd_forget[t, head] + p["dt_bias"][head]))
                f = torch.exp(-torch.exp(p["a_log"][head]) * dt)
                c = torch.tanh(h[head] @ p["state_weight"][head] + torch.outer(k, v[head]))
                h[head] = f * h[head] + (1 - f) * c
                o[head] = h[head].T @ q + p["skip"][head] * v[head]
            gated = o.flatten() * gate[t] * torch.sigmoid(gate[t])
            normed = gated / torch.sqrt(gated.square().mean() + block.norm.eps)
            out[row, t] = (normed * p["norm.weight"]) @ p["out.weight"].T
    return out


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 16])
def test_is_its_formulas(length: int) -> None:
    block, x = block_of(), inputs(length)
    torch.testing.assert_close(block(x).delta, by_hand(block, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("documents", DOCUMENTS)
def test_a_document_in_a_row_equals_the_document_alone(documents: str) -> None:
    block, lengths = block_of(), DOCUMENTS[documents]
    x = inputs().requires_grad_()
    together = block(x, Context(ids_of(lengths).expand(2, -1))).delta
    alone = torch.cat([block(piece).delta for piece in x.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    weights = inputs(seed=2)
    for one, other in zip(
        torch.autograd.grad((together * weights).sum(), [x, *block.parameters()]),
        torch.autograd.grad((alone * weights).sum(), [x, *block.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("pieces", PIECES, ids=lambda pieces: "+".join(map(str, pieces)))
@pytest.mark.parametrize("num_taps", [1, 4])
def test_extend_in_any_pieces_equals_forward(pieces: Sequence[int], num_taps: int) -> None:
    block, x = block_of(model__recurrent__conv_kernel_size=num_taps), inputs()
    with torch.no_grad():
        expected = block(x).delta
    extended, _ = extend_in_pieces(block, x, pieces)
    torch.testing.assert_close(extended, expected, rtol=1e-12, atol=1e-12)


def test_an_earlier_state_can_be_taken_up_again() -> None:
    block, x = block_of(), inputs()
    _, state = extend_in_pieces(block, x[:, :5], (5,))
    kept = [tensor.clone() for tensor in state]
    first, _ = block.extend(x[:, 5:9], state)
    again, _ = block.extend(x[:, 5:9], state)
    assert torch.equal(first.delta, again.delta)
    assert all(torch.equal(a, b) for a, b in zip(kept, state, strict=True))


def test_bf16_decodes_with_a_wide_state() -> None:
    block = block_of().float()
    x = inputs().bfloat16()
    extended, state = extend_in_pieces(block, x, (3, 1, 4, 8))
    assert (extended.dtype, state[0].dtype, state[1].dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )


@torch.no_grad()
def test_a_head_that_forgets_slowly_still_writes_in_bf16() -> None:
    """f = 0.999 is 1 in bf16, and a step writes 1 − f."""
    block, x = block_of().float(), inputs().bfloat16()
    spec = block.spec
    block.in_proj.weight[2 * spec.key_dim + spec.num_heads * spec.value_dim :][: spec.num_heads] = 0
    block.dt_bias.fill_(1.0)
    block.a_log.fill_(-7.2)
    block.skip.fill_(0.0)
    whole = block(x).delta
    assert (whole.abs().amax(-1) > 0).all()
    extended, _ = extend_in_pieces(block, x, (3, 13))
    torch.testing.assert_close(extended, whole, rtol=0.02, atol=0.02 * whole.abs().max().item())


def test_the_lane_s_clip_reaches_the_gradients() -> None:
    """A small clip changes what passes through the state, and what does not pass through it stays."""
    gradients = {}
    for clip in (1e6, 1e-3):
        block = block_of(model__recurrent__state_gradient_clip=clip)
        block(inputs()).delta.square().sum().backward()
        gradients[clip] = {name: p.grad for name, p in block.named_parameters()}
    for name in ("state_weight", "a_log", "dt_bias", "in_proj.weight"):
        assert (gradients[1e6][name] - gradients[1e-3][name]).abs().max() > 1e-3, name
    for name in ("skip", "norm.weight", "out.weight"):
        assert torch.equal(gradients[1e6][name], gradients[1e-3][name]), name


def test_compiles_whole_with_documents() -> None:
    block, x = block_of().float(), inputs(3).float()
    context = Context(ids_of([2, 1]).expand(2, -1))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(compiled(x, context).delta, block(x, context).delta)
