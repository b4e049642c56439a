"""The dense warm-up: attention stays as it is, the indexers alone learn to rank as it does."""

import pytest
import torch

from lanewise.models.assemble import build_block
from lanewise.models.attention import Attention
from lanewise.models.layers import Context
from lanewise.models.model import HybridModel
from lanewise.models.moe import MixtureOfExperts
from lanewise.models.sparse_attention import WarmupAttention
from tests.models.micro import micro_model, random_batch, reference_ops, sparse_lane


def warmup_model(**changes: object) -> HybridModel:
    return micro_model(sparse_lane(stage="dense_warmup", **changes))


def test_only_indexers_are_trained() -> None:
    model = warmup_model()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".indexer." in name}
    tokens, targets = random_batch(sparse_lane())
    model(tokens, targets).total.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


def test_layers_attend_densely_whatever_the_index_says() -> None:
    model = warmup_model()
    dense = micro_model(sparse_lane(layer_ranks=(0,), full_ranks=(0,), top_k=10))
    dense.load_state_dict(model.state_dict(), strict=False)
    tokens, _ = random_batch(sparse_lane())
    torch.testing.assert_close(model.trunk(tokens).hidden, dense.trunk(tokens).hidden)


def test_full_and_promoted_layers_have_the_loss_and_shared_ones_none() -> None:
    kinds = [type(block) for block in warmup_model(full_ranks=(2,)).blocks]
    assert kinds == [Attention, WarmupAttention, Attention, WarmupAttention]


def test_the_loss_is_the_divergence_from_dense_attention() -> None:
    lane = sparse_lane(stage="dense_warmup", layer_ranks=(0, 1, 2, 3))
    block = build_block("A", lane, model_switches={}, ops=reference_ops(lane), rank=0).double()
    block.reset_parameters(std=0.4, output_std=0.4, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = block(x).aux_losses["indexer"]
    mla = block.mla
    cos, sin = mla.rope(0, 7, x)
    # Keys of every head expanded: the loss itself never makes them.
    q, k, _ = block.ops.mla_ingress(
        mla.queries(mla.query_latents(x)),
        mla.expand(mla.key_latents(x)[0]),
        mla.key_latents(x)[1],
        cos,
        sin,
    )
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    p = (mla.scale * q @ k.transpose(-2, -1)).masked_fill(future, float("-inf")).softmax(-1).mean(1)
    index = block.indexer(x, mla.query_latents(x), cos, sin)
    scores = torch.einsum("bthd,bsd->bths", index.q, index.k).relu()
    scores = torch.einsum("bth,bths->bts", index.weights, scores)
    log_q = scores.masked_fill(future, float("-inf")).log_softmax(-1).masked_fill(future, 0.0)
    expected = 0.5 * (torch.xlogy(p, p) - p * log_q).sum(-1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bias_update", ["sign", "ema"])
def test_the_routing_bias_is_frozen_too(bias_update: str) -> None:
    lane = sparse_lane(
        stage="dense_warmup", model__pattern="AAAE", layer_ranks=(1, 2), full_ranks=(0,)
    )
    moe_spec = lane.model.moe.model_copy(update={"bias_update": bias_update})
    lane = lane.model_copy(update={"model": lane.model.model_copy(update={"moe": moe_spec})})
    model = micro_model(lane)
    tokens, targets = random_batch(lane)
    model(tokens, targets)
    assert model.update_expert_bias() is not None
    (moe,) = (module for module in model.modules() if isinstance(module, MixtureOfExperts))
    assert not moe.router.bias.any()
    assert not moe.router.load.any()
    assert moe.router.load_error is None or not moe.router.load_error.any()


def test_the_sparse_stage_takes_over_every_weight() -> None:
    model = warmup_model()
    sparse = micro_model(sparse_lane(), seed=1)
    assert sparse.load_state_dict(model.state_dict()).missing_keys == []
    assert all(p.requires_grad for p in sparse.parameters())


@pytest.mark.parametrize("document_length", [1, 4])
def test_the_loss_stays_within_documents(document_length: int) -> None:
    block = warmup_model(layer_ranks=(0, 1, 2, 3), full_ranks=(0,)).blocks[0]
    block.reset_parameters(std=0.4, output_std=0.4, generator=torch.Generator().manual_seed(0))
    block.double()
    x = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids = (torch.arange(8) // document_length).expand(2, -1)
    loss = block(x, Context(document_ids=ids)).aux_losses["indexer"]
    alone = [block(piece).aux_losses["indexer"] for piece in x.split(document_length, dim=1)]
    # Positions go on counting in a packed row, and the rotation table is fp32.
    torch.testing.assert_close(loss, torch.stack(alone).mean(), rtol=1e-5, atol=1e-8)
    assert (loss > 1e-3) == (document_length > 1)
