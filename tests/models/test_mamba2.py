"""Mamba-2 as a block: formulas, documents, decoding, start values. The comparison with transformers is its own file."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lanewise.models.assemble import build_block
from lanewise.models.layers import Context, is_decayed, must_stay_fp32
from lanewise.models.mamba2 import Mamba2
from lanewise.models.model import HybridModel
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import capabilities
from lanewise.ops.opset import OpSet
from tests.models.extending import PIECES, extend_in_pieces
from tests.models.micro import micro_lane, micro_model, random_batch
from tests.ops.test_ssd_scan import DOCUMENTS, ids_of

BACKENDS = ("reference", "recurrence.torch", "chunked.torch")


def block_of(*, backend: str = "chunked.torch", seed: int = 0, **changes: object) -> Mamba2:
    lane = micro_lane(
        model__pattern="M", model__num_layers=1, model__mamba__version="mamba2", **changes
    )
    ops = OpSet.resolve({"ssd_scan": (backend,)}, lane_problems(lane, "cpu"), capabilities("cpu"))
    block = build_block("M", lane, model_switches={}, ops=ops)
    block.reset_parameters(std=0.4, output_std=0.4, generator=torch.Generator().manual_seed(seed))
    assert isinstance(block, Mamba2)
    return block.double()


def inputs(length: int = 16, seed: int = 1, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, 12, generator=generator, dtype=torch.float64)


def by_hand(block: Mamba2, x: Tensor) -> Tensor:
    """The block's formulas, one token and head at a time."""
    spec, p = block.spec, dict(block.named_parameters())
    inner, grouped = spec.num_heads * spec.head_dim, spec.num_groups * spec.state_size
    per_group = spec.num_heads // spec.num_groups
    out = torch.empty_like(x)
    for row in range(len(x)):
        projected = x[row] @ p["in_proj.weight"].T
        z, mixed, dd_dt = projected.split([inner, inner + 2 * grouped, spec.num_heads], -1)
        state = torch.zeros(spec.num_heads, spec.head_dim, spec.state_size, dtype=x.dtype)
        for t in range(x.shape[1]):
            filtered = p["conv_bias"].clone()
            for lag in range(min(spec.conv_kernel_size, t + 1)):
                filtered = filtered + p["conv_weight"][:, -1 - lag] * mixed[t - lag]
            filtered = filtered * torch.sigmoid(filtered)
            v, b, c = filtered.split([inner, grouped, grouped])
            v, b, c = (
                v.view(spec.num_heads, -1),
                b.view(spec.num_groups, -1),
                c.view(spec.num_groups, -1),
            )
            y = torch.empty_like(v)
            for head in range(spec.num_heads):
                dt = torch.log1p(torch.exp(dd_dt[t, head] + p["dt_bias"][head]))
                decay = torch.exp(-torch.exp(p["a_log"][head]) * dt)
                group = head // per_group
                state[head] = decay * state[head] + dt * torch.outer(v[head], b[group])
                y[head] = state[head] @ c[group] + p["skip"][head] * v[head]
            gated = y.flatten() * z[t] * torch.sigmoid(z[t])
            grouped_y = gated.view(spec.num_groups, -1)
            mean_square = grouped_y.square().mean(-1, keepdim=True)
            normed = (grouped_y / torch.sqrt(mean_square + block.eps)).flatten()
            out[row, t] = (normed * p["norm_weight"]) @ p["out.weight"].T
    return out


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 16, 63])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_its_formulas(backend: str, length: int) -> None:
    block, x = block_of(backend=backend), inputs(length, batch=1)
    torch.testing.assert_close(block(x).delta, by_hand(block, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_inputs_and_parameters_match_finite_differences(backend: str) -> None:
    block = block_of(backend=backend, model__mamba__chunk_size=2)
    names = [name for name, _ in block.named_parameters()]
    context = Context(ids_of([2, 3]))

    def delta(x: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(block, parameters, (x, context)).delta

    parameters = tuple(p.detach().clone().requires_grad_() for p in block.parameters())
    x = inputs(5, batch=1).requires_grad_()
    assert torch.autograd.gradcheck(delta, (x, *parameters), fast_mode=True)


def test_every_parameter_gets_a_gradient() -> None:
    block = block_of()
    block(inputs()).delta.square().sum().backward()
    assert [n for n, p in block.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
@pytest.mark.parametrize("changed", [0, 1, 7, 8, 15])
def test_a_token_changes_nothing_before_it_and_all_after_it(changed: int) -> None:
    block, x = block_of(), inputs()
    other = x.clone()
    other[:, changed] += 1.0
    before, after = block(x).delta, block(other).delta
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-13, atol=1e-13)
    assert ((after - before)[:, changed:].abs().amax(-1) > 1e-9).all()


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_document_in_a_row_equals_the_document_alone(backend: str, documents: str) -> None:
    block, lengths = block_of(backend=backend), DOCUMENTS[documents]
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
    block, x = block_of(model__mamba__conv_kernel_size=num_taps), inputs()
    with torch.no_grad():
        expected = block(x).delta
    extended, _ = extend_in_pieces(block, x, pieces)
    torch.testing.assert_close(extended, expected, rtol=1e-11, atol=1e-12)


def test_the_state_does_not_depend_on_the_pieces() -> None:
    block, x = block_of(), inputs()
    _, whole = extend_in_pieces(block, x, (16,))
    _, single = extend_in_pieces(block, x, (1,) * 16)
    for one, other in zip(whole, single, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


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
    assert [t.dtype for t in (extended, *state)] == [torch.bfloat16, torch.bfloat16, torch.float32]
    # The pieces round y once more than the whole does, to bf16's 8 bits.
    expected = block(x).delta.float()
    torch.testing.assert_close(
        extended.float(), expected, rtol=0, atol=0.03 * expected.abs().max().item()
    )


def test_start_values_are_those_of_the_public_module() -> None:
    block = block_of(
        model__mamba__num_heads=512, model__mamba__head_dim=1, model__mamba__dt_min=0.01
    )
    a = block.a_log.exp()
    assert 1.0 <= a.min() < 1.2
    assert 15.8 < a.max() <= 16.0
    assert a.mean().item() == pytest.approx(8.5, abs=0.5)
    log_dt = torch.nn.functional.softplus(block.dt_bias).log()
    assert log_dt.min() >= math.log(0.01) - 1e-4
    assert log_dt.max() <= math.log(0.1) + 1e-4
    assert log_dt.mean().item() == pytest.approx((math.log(0.01) + math.log(0.1)) / 2, abs=0.1)
    assert (block.skip == 1).all()
    for drawn in (block.conv_weight, block.conv_bias):
        assert 0.49 < drawn.abs().max() <= 0.5


def test_vectors_are_neither_decayed_nor_cast_and_matrices_are_decayed() -> None:
    for name, parameter in block_of().named_parameters():
        is_vector = name in ("conv_bias", "dt_bias", "a_log", "skip", "norm_weight")
        assert is_decayed(parameter) != is_vector, name
        assert must_stay_fp32(parameter) == is_vector, name


@pytest.mark.parametrize("with_documents", [False, True], ids=["one_document", "documents"])
def test_compiles_whole(with_documents: bool) -> None:
    # The op's own tests compile its backends; this is about the block around it.
    block, x = block_of(backend="reference").float(), inputs(2).float()
    context = Context(ids_of([1, 1]).expand(2, -1) if with_documents else None)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(compiled(x, context).delta, block(x, context).delta)


def hybrid() -> tuple[HybridModel, Tensor]:
    """A model of Mamba-2 and M2RNN layers in fp64, and two rows of tokens."""
    lane = micro_lane(model__pattern="MRM", model__num_layers=3, model__mamba__version="mamba2")
    tokens, _ = random_batch(lane)
    return micro_model(lane).double().eval(), tokens


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(10,), (1,) * 10, (3, 1, 4, 2)])
def test_prefill_and_decode_of_a_model_equal_its_forward(pieces: tuple[int, ...]) -> None:
    model, tokens = hybrid()
    state, hidden = None, []
    for piece in tokens.split(list(pieces), dim=1):
        normed, state = model.extend(piece, state)
        hidden.append(normed)
    expected = model.trunk(tokens).hidden
    torch.testing.assert_close(torch.cat(hidden, dim=1), expected, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_documents_of_a_model_are_isolated() -> None:
    model, tokens = hybrid()
    ids = torch.tensor([[5, 5, 5, 9, 2, 2, 2, 2, 2, 2]]).expand(2, -1)
    together = model.trunk(tokens, document_ids=ids).hidden
    alone = [model.trunk(piece).hidden for piece in tokens.split([3, 1, 6], dim=1)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-11, atol=1e-11)
