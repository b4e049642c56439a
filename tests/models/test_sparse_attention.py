"""Sparse attention against masked dense attention in expanded form, and the index cache through a whole model."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lanewise.lane.schema import Lane, RecomputeSpec
from lanewise.models.assemble import build_block
from lanewise.models.layers import Block, Context
from lanewise.models.model import HybridModel
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import capabilities
from lanewise.ops.opset import OpSet
from lanewise.parallel import recompute
from tests.models.micro import micro_model, random_batch, reference_ops, sparse_lane
from tests.ops import conformance
from tests.ops.watch import ShapeWatch

EVERYWHERE: dict[str, Any] = {"layer_ranks": (0, 1, 2, 3), "full_ranks": (0, 2)}
COEFFICIENT = 0.5


def fast_ops(lane: Lane) -> OpSet:
    return OpSet.resolve({}, lane_problems(lane, "cpu"), capabilities("cpu"))


def block_of(rank: int = 0, *, fast: bool = True, **changes: Any) -> Block:
    lane = sparse_lane(**{**EVERYWHERE, **changes})
    ops = fast_ops(lane) if fast else reference_ops(lane)
    block = build_block("A", lane, model_switches={}, ops=ops, rank=rank)
    block.reset_parameters(std=0.4, output_std=0.4, generator=conformance.generator())
    return block.double()


def inputs(length: int = 10, seed: int = 1, batch: int = 1) -> Tensor:
    rng = conformance.generator(seed)
    return torch.randn(batch, length, 12, generator=rng, dtype=torch.float64)


def rotated(x: Tensor, first_dim: int, theta: float) -> Tensor:
    """Four dims from `first_dim` turned as two complex numbers by their position; T on dim 1."""
    turn = torch.outer(torch.arange(x.shape[1]).double(), theta ** (-torch.tensor([0.0, 0.5])))
    turn = torch.polar(torch.ones_like(turn), turn).view(1, -1, *(1,) * (x.dim() - 3), 2)
    part = x[..., first_dim : first_dim + 4]
    turned = torch.complex(part[..., :2], part[..., 2:]) * turn
    before, after = x[..., :first_dim], x[..., first_dim + 4 :]
    return torch.cat([before, turned.real, turned.imag, after], dim=-1)


def oracle(block: Block, x: Tensor, document_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Delta and KL from the weights alone: keys and values per head, all scores, everything else masked."""
    w = {name: p.double() for name, p in block.named_parameters()}
    b, t, _ = x.shape

    def norm(v: Tensor, weight: Tensor) -> Tensor:
        return v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    c_q = norm(x @ w["mla.q_down.weight"].T, w["mla.q_norm.weight"])
    q = rotated((c_q @ w["mla.q_up.weight"].T).view(b, t, 2, 8), 4, 5e5)
    down = x @ w["mla.kv_down.weight"].T
    k_rope = rotated(down[..., 5:], 0, 5e5)
    kv = (norm(down[..., :5], w["mla.kv_norm.weight"]) @ w["mla.kv_up.weight"].T).view(b, t, 2, 7)
    k = torch.cat([kv[..., :4], k_rope.unsqueeze(2).expand(-1, -1, 2, -1)], dim=-1)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / 8**0.5

    q_i = rotated((c_q.detach() @ w["indexer.q_up.weight"].T).view(b, t, 3, 6), 0, 5e5)
    k_i = x.detach() @ w["indexer.key.weight"].T
    k_i = (k_i - k_i.mean(-1, keepdim=True)) / (k_i.var(-1, correction=0) + 1e-6).sqrt()[..., None]
    k_i = rotated(k_i * w["indexer.key_norm_weight"] + w["indexer.key_norm_bias"], 0, 5e5)
    weights = x.detach() @ w["indexer.head_weights.weight"].T / 18**0.5
    index = torch.einsum("bth,bths->bts", weights, torch.einsum("bthd,bsd->bths", q_i, k_i).relu())

    seen = torch.ones(t, t, dtype=torch.bool).tril().expand(b, -1, -1)
    if document_ids is not None:
        seen = seen & (document_ids.unsqueeze(2) == document_ids.unsqueeze(1))
    hidden = index.masked_fill(~seen, float("-inf"))
    rank = hidden.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    chosen = seen & (rank < block.sparse.top_k)
    p = scores.masked_fill(~chosen.unsqueeze(1), float("-inf")).softmax(-1)
    out = torch.einsum("bhts,bshv->bthv", p, kv[..., 4:]).flatten(2) @ w["mla.out.weight"].T
    target = p.mean(1).detach()
    log_q = index.masked_fill(~chosen, float("-inf")).log_softmax(-1).masked_fill(~chosen, 0.0)
    return out, (torch.xlogy(target, target) - target * log_q).sum(-1).mean()


def both(delta: Tensor, loss: Tensor) -> Tensor:
    """One number that sees every output of a layer."""
    rng = conformance.generator(7)
    return (delta * torch.randn(delta.shape, generator=rng, dtype=torch.float64)).sum() + loss


def gradients_of(number: Tensor, block: Block, *others: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(number, [*block.parameters(), *others]))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("top_k", [1, 3, 50])
@pytest.mark.parametrize("length", [1, 10, 63])
def test_equals_masked_dense_attention_in_expanded_form(
    fast: bool, top_k: int, length: int
) -> None:
    block = block_of(fast=fast, top_k=top_k)
    x = inputs(length, batch=2).requires_grad_()
    output = block(x)
    delta, loss = oracle(block, x)
    torch.testing.assert_close(output.delta, delta, rtol=1e-6, atol=1e-7)  # the table is fp32
    torch.testing.assert_close(
        output.aux_losses["indexer"], COEFFICIENT * loss, rtol=1e-5, atol=1e-7
    )
    found = gradients_of(both(output.delta, output.aux_losses["indexer"]), block, x)
    expected = gradients_of(both(delta, COEFFICIENT * loss), block, x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_equals_the_oracle_within_documents() -> None:
    block = block_of()
    x = inputs(10)
    ids = torch.tensor([[0, 1, 1, 1, 1, 1, 2, 3, 3, 3]])  # lengths 1, 5, 1, 3
    output = block(x, Context(document_ids=ids))
    delta, loss = oracle(block, x, ids)
    torch.testing.assert_close(output.delta, delta, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        output.aux_losses["indexer"], COEFFICIENT * loss, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("top_k", [10, 11, 1000])
def test_selecting_all_that_is_visible_is_dense_attention(top_k: int) -> None:
    block = block_of(top_k=top_k)
    lane = sparse_lane(layer_ranks=(1, 2, 3))
    dense = build_block("A", lane, model_switches={}, ops=reference_ops(lane), rank=0).double()
    dense.mla.load_state_dict(block.mla.state_dict())
    x = inputs(10)
    torch.testing.assert_close(block(x).delta, dense(x).delta, rtol=1e-12, atol=1e-12)


def test_the_indexer_learns_from_its_loss_alone_and_nothing_else_does() -> None:
    block = block_of()
    x = inputs(10).requires_grad_()
    output = block(x)
    output.delta.sum().backward()
    assert all(p.grad is None for p in block.indexer.parameters())
    assert all(p.grad is not None and p.grad.any() for p in block.mla.parameters())
    block.zero_grad()
    x.grad = None
    block(x).aux_losses["indexer"].backward()
    assert all(p.grad is not None and p.grad.any() for p in block.indexer.parameters())
    assert all(p.grad is None for p in block.mla.parameters())
    assert x.grad is None


def test_a_zero_coefficient_leaves_the_loss_out() -> None:
    block = block_of(indexer_loss_coefficient=0.0)
    output = block(inputs())
    assert output.aux_losses == {}
    assert output.key_ids is not None


def test_gradients_match_finite_differences() -> None:
    block = block_of()
    names = [name for name, _ in block.named_parameters()]
    x = inputs(6).requires_grad_()

    def delta(x: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        output = torch.func.functional_call(block, parameters, (x,))
        return output.delta

    values = tuple(
        p.detach().clone().requires_grad_(not name.startswith("indexer"))
        for name, p in block.named_parameters()
    )
    assert torch.autograd.gradcheck(delta, (x, *values), fast_mode=True)


def test_a_shared_layer_attends_to_the_keys_it_is_given() -> None:
    shared = block_of(rank=1)
    assert shared.indexer is None
    x = inputs(10)
    only_itself = torch.arange(10).view(1, -1, 1)
    output = shared(x, Context(key_ids=only_itself))
    # A softmax over one key is 1, so the output is the value of that key.
    latents, _ = shared.mla.key_latents(x)
    alone = shared.mla.project_out(shared.mla.expand(latents)[..., 4:])
    torch.testing.assert_close(output.delta, alone, rtol=1e-12, atol=1e-12)
    assert (output.key_ids, dict(output.aux_losses)) == (None, {})
    with pytest.raises(ValueError, match="was given no key_ids"):
        shared(x)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_block_compiles_whole(rank: int) -> None:
    block = block_of(rank=rank)
    x = inputs(10)
    context = Context(key_ids=None if rank == 0 else block_of()(x).key_ids)
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False)
    with conformance.compiler_warnings_ignored():
        found = compiled(x, context)
        found.delta.sum().backward()
    torch.testing.assert_close(found.delta, block(x, context).delta)


def model_of(lane: Lane) -> HybridModel:
    """A model with fast ops in fp64 whose weights are large enough for its layers to matter."""
    model = micro_model(lane, ops=fast_ops(lane)).double()
    with torch.no_grad():
        for block in model.blocks:
            block.reset_parameters(std=0.4, output_std=0.4, generator=conformance.generator(3))
    return model


@pytest.mark.parametrize("changed", [1, 5, 9])
def test_a_token_changes_nothing_before_it(changed: int) -> None:
    lane = sparse_lane()
    model = model_of(lane)
    tokens, _ = random_batch(lane)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % 257
    with torch.no_grad():
        before, after = model.trunk(tokens).hidden, model.trunk(other).hidden
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[:, changed], before[:, changed])


SETTINGS: dict[str, dict[str, Any]] = {
    "all sparse": EVERYWHERE,
    "promoted": {**EVERYWHERE, "full_ranks": (2,)},
    "dense before and between": {"layer_ranks": (1, 3), "full_ranks": (0,)},
    "more keys than tokens": {**EVERYWHERE, "top_k": 20},
    "warm-up": {**EVERYWHERE, "stage": "dense_warmup"},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_documents_do_not_meet(setting: str) -> None:
    lane = sparse_lane(**SETTINGS[setting])
    model = model_of(lane)
    tokens, _ = random_batch(lane)
    ids = torch.tensor([[4, 4, 4, 4, 5, 6, 6, 6, 6, 6]]).expand(2, -1)
    with torch.no_grad():
        together = model.trunk(tokens, document_ids=ids).hidden
        alone = [
            model.trunk(tokens[:, part]).hidden for part in (slice(4), slice(4, 5), slice(5, 10))
        ]
    # Positions go on counting in a packed row; the fp32 table makes equal differences equal to fp32 only.
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-5)
    other = tokens.clone()
    other[:, 2] = (other[:, 2] + 1) % 257
    with torch.no_grad():
        changed = model.trunk(other, document_ids=ids).hidden
    assert torch.equal(changed[:, 4:], together[:, 4:])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("pieces", [(10,), (1,) * 10, (3, 1, 4, 2), (9, 1)])
def test_extending_in_pieces_equals_the_whole(setting: str, pieces: tuple[int, ...]) -> None:
    lane = sparse_lane(**SETTINGS[setting])
    model = model_of(lane)
    tokens, _ = random_batch(lane)
    with torch.no_grad():
        whole = model.trunk(tokens).hidden
        hidden, state, start = [], None, 0
        for length in pieces:
            piece, state = model.extend(tokens[:, start : start + length], state)
            hidden.append(piece)
            start += length
    torch.testing.assert_close(torch.cat(hidden, dim=1), whole, rtol=1e-12, atol=1e-12)


def test_an_earlier_state_can_be_taken_up_again() -> None:
    lane = sparse_lane(**EVERYWHERE)
    model = model_of(lane)
    tokens, _ = random_batch(lane)
    with torch.no_grad():
        _, state = model.extend(tokens[:, :6])
        first, _ = model.extend(tokens[:, 6:8], state)
        model.extend(tokens[:, 8:], state)
        again, _ = model.extend(tokens[:, 6:8], state)
    assert torch.equal(first, again)


def test_a_text_longer_than_training_can_be_extended() -> None:
    lane = sparse_lane(**EVERYWHERE)
    model = model_of(lane)
    tokens = torch.arange(25).unsqueeze(0)
    with torch.no_grad():
        whole, _ = model.extend(tokens)
        _, state = model.extend(tokens[:, :12])
        rest, _ = model.extend(tokens[:, 12:], state)
    torch.testing.assert_close(rest, whole[:, 12:], rtol=1e-12, atol=1e-12)


def test_a_promoted_layer_is_a_full_layer() -> None:
    promoted = sparse_lane(**{**EVERYWHERE, "full_ranks": (2,)})
    named = sparse_lane(**EVERYWHERE)
    tokens, targets = random_batch(named)
    losses = [micro_model(lane)(tokens, targets).total for lane in (promoted, named)]
    assert torch.equal(*losses)
    indexers = [block.indexer is not None for block in micro_model(promoted).blocks]
    assert indexers == [True, False, True, False]


@pytest.mark.parametrize("policy", ["checkpoint", "full", "selective"])
@pytest.mark.parametrize("stage", ["sparse", "dense_warmup"])
def test_the_index_cache_survives_recomputation_with_two_micro_batches_in_flight(
    policy: str, stage: str
) -> None:
    lane = sparse_lane(**EVERYWHERE, stage=stage)
    batches = [random_batch(lane, seed) for seed in (0, 1)]
    found = []
    for again in (False, True):
        model = model_of(lane)
        if again and policy == "checkpoint":
            model.run_block = [
                lambda block, *args: checkpoint(block, *args, use_reentrant=False)
            ] * len(model.run_block)
        elif again:
            spec = RecomputeSpec.model_validate({"attention": policy})
            recompute.apply(model, spec, compiled=False)
        losses = [model(tokens, targets) for tokens, targets in batches]
        for loss in losses:  # both forwards are done before the first backward
            loss.total.backward()
        found.append((losses, {name: p.grad for name, p in model.named_parameters()}))
    (losses, gradients), (again_losses, again_gradients) = found
    for one, other in zip(losses, again_losses, strict=True):
        assert torch.equal(one.total, other.total)
        assert torch.equal(one.parts["indexer"], other.parts["indexer"])
    assert losses[0].total != losses[1].total
    for name, gradient in gradients.items():
        if stage == "dense_warmup" and ".indexer." not in name:
            assert gradient is again_gradients[name] is None
        else:
            assert torch.equal(gradient, again_gradients[name]), name


def test_a_layer_holds_nothing_between_calls() -> None:
    block = block_of()
    before = {name: value for name, value in vars(block).items() if not name.startswith("_")}
    block(inputs(10))
    after = {name: value for name, value in vars(block).items() if not name.startswith("_")}
    assert before == after
    assert not [v for v in after.values() if isinstance(v, Tensor)]


@pytest.mark.parametrize("stage", ["sparse", "dense_warmup"])
def test_the_indexer_holds_nothing_of_every_pair_of_positions(stage: str) -> None:
    block = block_of(stage=stage, top_k=20)
    x = inputs(129, batch=2).requires_grad_()
    with ShapeWatch() as watch:
        output = block(x)
        if stage == "sparse":
            both(output.delta, output.aux_losses["indexer"]).backward()
        else:
            output.aux_losses["indexer"].backward()
    quadratic = watch.quadratic(129, 2)
    if stage == "dense_warmup":  # what dense attention itself holds is its backend's matter
        with ShapeWatch() as of_dense:
            super(type(block), block).forward(x)
        quadratic = [shape for shape in quadratic if shape not in of_dense.shapes]
    assert (2, 32, 3, 129) in watch.shapes or (2, 96, 128) in watch.shapes
    assert quadratic == []


def test_a_sparse_lane_trains_and_its_indexer_learns() -> None:
    lane = sparse_lane(model__pattern="AEAR", layer_ranks=(0, 1), full_ranks=(0,))
    # Weights are drawn wide, or attention would start so even that there is nothing to learn.
    model = model_of(lane).float()
    tokens, targets = random_batch(lane)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses, indexer_losses = [], []
    for _ in range(20):
        loss = model(tokens, targets)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.cross_entropy.item())
        indexer_losses.append(loss.parts["indexer"].item())
    assert all(torch.tensor(losses + indexer_losses).isfinite())
    assert losses[-1] < losses[0] - 0.5
    assert indexer_losses[-1] < 0.7 * indexer_losses[0]
