"""Block M in every form: against its definition, against itself in pieces, against the future and other documents."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lanewise.lane.schema import Lane, RecomputePolicy
from lanewise.models.assemble import build_block
from lanewise.models.layers import Context
from lanewise.models.mamba import Mamba, decay_rate
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import capabilities
from lanewise.ops.opset import OpSet
from lanewise.parallel.recompute import with_policy
from tests.models.micro import micro_lane

FORMS: dict[str, dict[str, Any]] = {
    "siso": {},
    "siso_norm": {"output_norm": True},
    "siso_softplus_all_turn": {"decay_map": "softplus", "rope_fraction": 1.0},
    "mimo": {"mimo_rank": 2},
    "mimo_norm": {"mimo_rank": 3, "output_norm": True},
    "mimo_softplus_none_turns": {"mimo_rank": 2, "decay_map": "softplus", "rope_fraction": 0.0},
    "mimo_at_the_floor": {"mimo_rank": 2, "a_floor": 0.5, "rope_fraction": 1.0},
}
BACKENDS = ("chunked.torch", "recurrence.torch", "reference")
D = 12


def mamba_lane(form: str) -> Lane:
    changes = {f"model__mamba__{key}": value for key, value in FORMS[form].items()}
    return micro_lane(model__pattern="M", model__num_layers=1, **changes)


def block_of(form: str, backend: str = "chunked.torch") -> Mamba:
    """A block in fp64 whose every parameter is drawn, so that none hides behind its start value."""
    lane = mamba_lane(form)
    problems = lane_problems(lane, "cpu")
    asked = dict.fromkeys({"ssm_scan", "mimo_scan"} & problems.keys(), (backend,))
    ops = OpSet.resolve(asked, problems, capabilities("cpu"))
    block = build_block("M", lane, model_switches={}, ops=ops)
    assert isinstance(block, Mamba)
    generator = torch.Generator().manual_seed(0)
    block.reset_parameters(std=0.4, output_std=0.4, generator=generator)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name not in ("in_proj.weight", "out.weight"):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return block.double()


def inputs(length: int, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, length, D, generator=generator, dtype=torch.float64)


def by_definition(block: Mamba, x: torch.Tensor) -> torch.Tensor:
    """One row and head after the other, token by token, straight from the paper; complex numbers for the rotation."""
    spec, rows = block.spec, []
    rank, per_group = spec.mimo_rank, spec.num_heads // spec.num_groups
    half = int(spec.state_size * spec.rope_fraction) // 2

    def turned(values: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        n, values = spec.state_size, values.clone()
        first = range(half) if rank > 1 else range(0, 2 * half, 2)
        offset = n // 2 if rank > 1 else 1
        for angle, i in zip(theta, first, strict=True):
            number = torch.complex(values[i], values[i + offset]) * torch.polar(
                angle * 0 + 1, angle
            )
            values[i], values[i + offset] = number.real, number.imag
        return values

    def normed(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return values / torch.sqrt(values.square().mean() + block.eps) * weight

    for row in x @ block.in_proj.weight.T:
        pieces = row.split(block.widths, dim=-1)
        outputs = torch.zeros(row.shape[0], spec.num_heads, spec.head_dim, dtype=row.dtype)
        for h in range(spec.num_heads):
            state = torch.zeros(spec.head_dim, spec.state_size, dtype=row.dtype)
            before, theta = torch.zeros_like(state), torch.zeros(half, dtype=row.dtype)
            for t in range(row.shape[0]):
                z, v, b, c, dd_dt, dd_a, trap, angles = (piece[t] for piece in pieces)
                dt = F.softplus(dd_dt[h] + block.dt_bias[h])
                a = decay_rate(dd_a[h], decay_map=spec.decay_map, a_floor=spec.a_floor)
                lam, alpha = torch.sigmoid(trap[h]), torch.exp(a * dt)
                theta = theta + math.pi * torch.tanh(angles) * dt
                z, v = (values.view(spec.num_heads, -1)[h] for values in (z, v))
                keys, queries = (
                    [
                        turned(
                            normed(
                                values.view(rank, spec.num_groups, -1)[r, h // per_group], weight
                            )
                            + bias.view(spec.num_heads, rank, -1)[h, r],
                            theta,
                        )
                        for r in range(rank)
                    ]
                    for values, weight, bias in (
                        (b, block.k_norm.weight, block.k_bias),
                        (c, block.q_norm.weight, block.q_bias),
                    )
                )
                seen = [v * block.psi_x[h, r] if rank > 1 else v for r in range(rank)]
                now = sum(torch.outer(s, key) for s, key in zip(seen, keys, strict=True))
                state = alpha * state + (1 - lam) * dt * alpha * before + lam * dt * now
                before = now
                for r in range(rank):
                    y = state @ queries[r] + block.skip[h] * seen[r]
                    if spec.output_norm:
                        y = normed(y, block.output_norm[h])
                    gate = F.silu(z * block.psi_z[h, r] if rank > 1 else z)
                    outputs[t, h] += y * gate * (block.psi_o[h, r] if rank > 1 else 1)
        rows.append(outputs.flatten(1))
    return torch.stack(rows) @ block.out.weight.T


@pytest.mark.parametrize("form", FORMS)
def test_is_its_definition(form: str) -> None:
    block, x = block_of(form), inputs(6, rows=1)
    with torch.no_grad():
        torch.testing.assert_close(block(x).delta, by_definition(block, x), rtol=1e-10, atol=1e-12)


def test_the_floor_holds_where_it_is_tested() -> None:
    block = block_of("mimo_at_the_floor")
    with torch.no_grad():
        projected = block._project(inputs(9))
    at_floor = torch.isclose(projected.a_dt, -0.5 * projected.dt, rtol=1e-12, atol=0)
    assert at_floor.any()
    assert not at_floor.all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "pieces", [(1,) * 11, (3, 1, 4, 3), (11,), (1, 10), (5, 6)], ids=lambda p: "+".join(map(str, p))
)
def test_extending_in_pieces_is_the_forward_of_the_whole(
    form: str, pieces: tuple[int, ...]
) -> None:
    block, x = block_of(form).eval(), inputs(11)
    with torch.no_grad():
        whole = block(x).delta
        state, found = None, []
        for piece in x.split(pieces, dim=1):
            output, state = block.extend(piece, state)
            found.append(output.delta)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["siso", "mimo_norm"])
def test_every_backend_prefills_alike(form: str, backend: str) -> None:
    block, x = block_of(form, backend).eval(), inputs(13)
    with torch.no_grad():
        first, state = block.extend(x[:, :7], None)
        second, _ = block.extend(x[:, 7:], state)
        whole = block(x).delta
    found = torch.cat([first.delta, second.delta], dim=1)
    torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", ["siso", "mimo_norm"])
def test_a_state_can_be_taken_up_again(form: str) -> None:
    block, x = block_of(form).eval(), inputs(8)
    with torch.no_grad():
        _, state = block.extend(x[:, :4], None)
        kept = [part.clone() for part in state]
        first, after = block.extend(x[:, 4:5], state)
        block.extend(x[:, 5:], after)
        again, _ = block.extend(x[:, 4:5], state)
    assert torch.equal(first.delta, again.delta)
    assert all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))


def test_the_state_is_fp32_and_its_angle_a_turn() -> None:
    block = block_of("mimo").to(torch.float32)
    with torch.no_grad():
        _, state = block.extend(50 * inputs(40).to(torch.bfloat16), None)
    assert {part.dtype for part in state} == {torch.float32}
    assert state.angle.min() >= 0
    assert state.angle.max() < 2 * math.pi + 1e-6
    assert (state.angle.shape, state.state.shape) == ((2, 4, 2), (2, 4, 4, 8))
    assert (state.k.shape, state.v.shape) == ((2, 2, 4, 8), (2, 2, 4, 4))


@torch.no_grad()
@pytest.mark.parametrize("form", ["siso", "mimo_norm"])
def test_a_long_text_costs_the_state_no_precision(form: str) -> None:
    """fp32 after 4,096 tokens is as near to fp64 as after a few."""
    exact, block = block_of(form).eval(), block_of(form).eval().float()
    for part in (exact, block):
        part.dt_bias.fill_(0.0)
    x = inputs(4100, rows=1).float()
    truth = exact(x.double()).delta[:, -4:]
    _, state = block.extend(x[:, :-4], None)
    found = []
    for token in x[:, -4:].split(1, dim=1):
        output, state = block.extend(token, state)
        found.append(output.delta)
    error = (torch.cat(found, dim=1).double() - truth).abs().max() / truth.abs().max()
    assert error < 2e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["chunked.torch", "recurrence.torch"])
def test_documents_are_as_if_alone(form: str, backend: str) -> None:
    block, x = block_of(form, backend).eval(), inputs(11, rows=1)
    edges = (0, 1, 2, 6, 9, 11)
    ids = torch.zeros(1, 11, dtype=torch.int64)
    ids[0, list(edges[1:-1])] = 1
    with torch.no_grad():
        together = block(x, Context(document_ids=ids.cumsum(1))).delta
        alone = [block(x[:, i:j]).delta for i, j in itertools.pairwise(edges)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_token_changes_nothing_before_it_and_everything_after(form: str) -> None:
    block, x = block_of(form).eval(), inputs(10, rows=1)
    other = x.clone()
    other[:, 5] += 1.0
    with torch.no_grad():
        moved = (block(other).delta - block(x).delta).abs().amax(-1)[0]
    assert moved[:5].max() < 1e-13
    assert moved[5:].min() > 1e-9


@pytest.mark.parametrize("form", FORMS)
def test_gradients_match_finite_differences(form: str) -> None:
    block, x = block_of(form), inputs(5, rows=1).requires_grad_()
    names = [name for name, _ in block.named_parameters()]
    context = Context(document_ids=torch.tensor([[0, 0, 1, 1, 1]]))

    def delta(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        weights = dict(zip(names, values, strict=True))
        return torch.func.functional_call(block, weights, (x, context)).delta

    parameters = tuple(p.detach().clone().requires_grad_() for p in block.parameters())
    assert torch.autograd.gradcheck(delta, (x, *parameters), fast_mode=True)


def test_the_public_start_values_of_mimo() -> None:
    """ψx = ψo = 1/R and ψz = 1, biases 1 (state-spaces/mamba)."""
    block = build_block(
        "M", mamba_lane("mimo_norm"), model_switches={}, ops=block_of("mimo_norm").ops
    )
    assert isinstance(block, Mamba)
    for parameter, value in (
        (block.psi_x, 1 / 3), (block.psi_z, 1), (block.psi_o, 1 / 3),
        (block.q_bias, 1), (block.k_bias, 1), (block.skip, 1),
    ):  # fmt: skip
        assert torch.equal(parameter, torch.full_like(parameter, value))
    assert block.q_bias.shape == block.k_bias.shape == (4, 3, 8)
    assert block.psi_x.shape == block.psi_z.shape == block.psi_o.shape == (4, 3, 4)
    assert block.output_norm.shape == (4, 4)


def test_compiles_as_one_graph() -> None:
    block = block_of("mimo_norm").train()
    x = inputs(6, rows=1).requires_grad_()
    torch.compiler.reset()
    # What generates code for the ops is tested with them; here no Python may break the graph.
    compiled = torch.compile(block, fullgraph=True, backend="eager", dynamic=False)
    context = Context(document_ids=torch.tensor([[0, 0, 1, 1, 1, 2]]))
    expected, found = block(x, context).delta, compiled(x, context).delta
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (eager,) = torch.autograd.grad(expected.sum(), x)
    (traced,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(traced, eager, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", ["full", "selective"])
@pytest.mark.parametrize("form", ["siso_norm", "mimo", "mimo_norm"])
def test_computed_again_it_gives_the_same_gradients_to_the_bit(
    form: str, policy: RecomputePolicy
) -> None:
    block, x = block_of(form).train(), inputs(6)
    context = Context(document_ids=torch.tensor([[0, 0, 1, 1, 1, 2], [0] * 6]))

    def gradients(policy: RecomputePolicy) -> list[torch.Tensor]:
        run = with_policy(lambda block, x, context: block(x, context), policy)
        leaf = x.clone().requires_grad_()
        loss = run(block, leaf, context).delta.square().sum()
        return list(torch.autograd.grad(loss, [leaf, *block.parameters()]))

    for found, expected in zip(gradients(policy), gradients("none"), strict=True):
        assert torch.equal(found, expected)
