"""Taxes on a whole model: start, training, causality, documents, decoding, and their size."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from lanewise.lane import tax_flops
from lanewise.lane.flops import lane_flops
from lanewise.lane.schema import Lane, MtpSpec, RecomputeSpec
from lanewise.lane.taxes import StpSpec
from lanewise.models.depth_routing import DepthRouted
from lanewise.models.engram import EngramBlock
from lanewise.models.layers import Context
from lanewise.models.model import HybridModel
from lanewise.parallel import recompute
from lanewise.train.data.token_facts import token_facts
from lanewise.train.data.tokens import ByteTokenizer
from tests.models.micro import micro_lane, random_batch, reference_ops, resolved_micro
from tests.models.simple_blocks import RunningSum, TokenWise, pieces

TAXES = ("metadata_embeddings", "engram", "hyper_connections", "depth_routing")
ALL = dict.fromkeys(TAXES, True)
COMBINATIONS: tuple[dict[str, bool], ...] = (*({key: True} for key in TAXES), ALL)


def lane_of(**changes: Any) -> Lane:
    return micro_lane(
        **{
            "model__depth_routing__num_first_layers_kept": 1,
            "model__ngram_embedding": {
                "orders": [2, 3],
                "num_heads": 2,
                "num_rows": 31,
                "head_dim": 3,
            },
            **changes,
        }
    )


def model_of(lane: Lane, switches: Mapping[str, bool]) -> HybridModel:
    facts = torch.from_numpy(token_facts(ByteTokenizer(), lane.model.vocab_size))
    model = HybridModel(
        lane, model_switches=switches, ops=reference_ops(lane, switches), token_facts=facts
    )
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


def shaken(model: HybridModel) -> HybridModel:
    """In fp64, with every parameter moved, so that nothing is still zero."""
    generator = torch.Generator().manual_seed(9)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def simplified(lane: Lane, switches: Mapping[str, bool]) -> HybridModel:
    """The model with the smallest blocks in place of its own, which isolate documents and extend."""
    model = model_of(lane, switches)
    hidden_size = lane.model.hidden_size
    for index, letter in enumerate(model.letters):
        simple = TokenWise(hidden_size) if letter == "E" else RunningSum(hidden_size)
        torch.nn.init.normal_(simple.map.weight, generator=torch.Generator().manual_seed(index))
        wrapper = model.blocks[index]
        if isinstance(wrapper, EngramBlock | DepthRouted):
            wrapper.block = simple
        else:
            model.blocks[index] = simple
    return shaken(model).eval()


@pytest.mark.parametrize("switches", COMBINATIONS)
def test_a_model_with_taxes_trains(switches: dict[str, bool]) -> None:
    lane = lane_of()
    model = model_of(lane, switches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = random_batch(lane)
    losses = []
    for _ in range(5):
        loss = model(*batch).total
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_expert_bias()
    assert all(torch.tensor(losses).isfinite())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("residual", ["fp32", "bf16"])
def test_all_taxes_compute_in_bf16(residual: str) -> None:
    changes = {"model__engram__gated": True, "model__engram__conv_kernel_size": 2}
    lane = lane_of(precision__compute="bf16", precision__residual=residual, **changes)
    batch = random_batch(lane)
    loss = model_of(lane, ALL)(*batch).total
    loss.backward()
    exact = model_of(lane_of(**changes), ALL)(*batch).total
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize(
    "keys", [TAXES[:1], TAXES[1:2], TAXES[2:3], TAXES[:3]], ids=lambda keys: "+".join(keys)
)
def test_the_start_is_that_of_the_model_without(keys: tuple[str, ...]) -> None:
    lane = lane_of()
    batch = random_batch(lane)
    plain = model_of(lane, {}).double()(*batch).total
    taxed = model_of(lane, dict.fromkeys(keys, True)).double()(*batch).total
    torch.testing.assert_close(taxed, plain, rtol=1e-12, atol=0)


def test_all_weights_of_the_model_without_start_alike() -> None:
    lane = lane_of()
    plain = dict(model_of(lane, {}).named_parameters())
    taxed = {
        name.replace(".block.", "."): value
        for name, value in model_of(lane, ALL).named_parameters()
    }
    for name, value in plain.items():
        assert torch.equal(taxed[name], value), name


@pytest.mark.parametrize("switches", COMBINATIONS)
@pytest.mark.parametrize("changed", [0, 4, 9])
def test_a_token_changes_nothing_before_it(switches: dict[str, bool], changed: int) -> None:
    lane = lane_of()
    model = shaken(model_of(lane, switches)).eval()
    tokens, _ = random_batch(lane)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % lane.model.vocab_size
    with torch.no_grad():
        before, after = model.trunk(tokens).hidden, model.trunk(other).hidden
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[:, changed:], before[:, changed:])


@pytest.mark.parametrize("switches", COMBINATIONS)
def test_documents_do_not_meet(switches: dict[str, bool]) -> None:
    lane = lane_of()
    model = simplified(lane, switches)
    tokens, _ = random_batch(lane)
    ids = torch.tensor([[5, 5, 5, 5, 2, 9, 9, 9, 9, 9]]).expand(2, -1)
    with torch.no_grad():
        together = model.trunk(tokens, document_ids=ids).hidden
        alone = [model.trunk(tokens[:, a:b]).hidden for a, b in ((0, 4), (4, 5), (5, 10))]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("switches", COMBINATIONS)
def test_decoding_in_any_pieces_is_the_trunk(switches: dict[str, bool]) -> None:
    lane = lane_of()
    model = simplified(lane, switches)
    tokens, _ = random_batch(lane)
    tokens[0, 3] = ByteTokenizer.separator_id
    with torch.no_grad():
        whole = model.trunk(tokens).hidden
        for lengths in pieces(10):
            state, hidden = None, []
            for piece in tokens.split(lengths, dim=1):
                found, state = model.extend(piece, state)
                hidden.append(found)
            torch.testing.assert_close(torch.cat(hidden, dim=1), whole, rtol=1e-11, atol=1e-12)


def test_only_later_token_wise_layers_are_routed_and_only_attention_has_the_branch() -> None:
    lane = lane_of(
        model__pattern="EAEM", model__num_layers=8, model__depth_routing__num_first_layers_kept=3
    )
    kinds = [type(block).__name__ for block in model_of(lane, ALL).blocks]
    unwrapped = ["MixtureOfExperts", "EngramBlock", "MixtureOfExperts", "Mamba"]
    assert kinds == [*unwrapped, "DepthRouted", "EngramBlock", "DepthRouted", "Mamba"]


def test_skipped_tokens_do_not_count_as_expert_load() -> None:
    lane = lane_of(model__num_layers=2)
    model = model_of(lane, {"depth_routing": True})
    loss = model.trunk(random_batch(lane)[0])
    (ids,) = loss.expert_ids
    moe = model.blocks[1].block
    assert 0 < int((ids >= 0).sum()) < ids.numel()
    assert int(moe.load.sum()) == int((ids >= 0).sum())


def dense_lane() -> Lane:
    return lane_of(
        model__pattern="GDAD",
        model__mtp=MtpSpec(depth=2, mlp_hidden_size=5),
        model__stp=StpSpec(layers=(0, 3), num_spans=2),
        model__engram__gated=True,
        model__engram__conv_kernel_size=3,
    )


def test_dense_blocks_with_all_taxes_decode_and_keep_documents_apart() -> None:
    lane = dense_lane()
    model = shaken(model_of(lane, ALL)).eval()
    tokens, _ = random_batch(lane)
    ids = torch.tensor([[5, 5, 5, 5, 2, 9, 9, 9, 9, 9]]).expand(2, -1)
    with torch.no_grad():
        together = model.trunk(tokens, document_ids=ids).hidden
        alone = []
        for start, end, lengths in ((0, 4, (3, 1)), (4, 5, (1,)), (5, 10, (1, 1, 3))):
            state = None
            for piece in tokens[:, start:end].split(lengths, dim=1):
                hidden, state = model.extend(piece, state)
                alone.append(hidden)
    # The table of rotations is fp32.
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-6)


def test_auxiliary_objectives_read_a_taxed_model() -> None:
    lane = dense_lane()
    model = model_of(lane, {**ALL, "mtp": True, "stp": True})
    plain = model_of(lane, {"mtp": True, "stp": True})
    batch = random_batch(lane)
    assert model.trunk(batch[0], path_layers=(0, 3)).paths[1].shape == (2, 10, 12)
    taxed, loss = model(*batch), plain(*batch)
    assert taxed.parts.keys() == loss.parts.keys() == {"mtp_1", "mtp_2", "stp"}
    taxed.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("key", TAXES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "model__engram__gated": True,
            "model__engram__conv_kernel_size": 3,
            "model__engram__bottleneck_ratio": 2,
            "model__hyper_connections__num_streams": 2,
            "model__metadata_embeddings__num_buckets": 13,
            "model__num_layers": 7,
        },
    ],
)
def test_extra_parameters_are_those_of_the_formula(key: str, changes: dict[str, Any]) -> None:
    lane = lane_of(**changes)
    total = sum(p.numel() for p in model_of(lane, {key: True}).parameters())
    extra = tax_flops.tax_components(lane, {key: True})
    assert extra
    expected = sum(component.count * component.params.total for component in extra)
    assert total - lane_flops(lane).params_total == expected > 0


def test_metadata_embeddings_without_facts_are_refused() -> None:
    lane = lane_of()
    with pytest.raises(ValueError, match="metadata embeddings need token_facts"):
        HybridModel(lane, model_switches={"metadata_embeddings": True}, ops=reference_ops(lane))


@pytest.mark.parametrize("key", TAXES)
def test_a_feature_sets_the_switch_of_its_name(key: str) -> None:
    resolved = resolved_micro(lane_of(), **{key: "on"})
    assert resolved.model_switches[key] is True
    assert key not in resolved_micro(lane_of()).model_switches


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_recomputation_changes_nothing(policy: str) -> None:
    lane = lane_of(model__engram__gated=True, model__engram__conv_kernel_size=2)
    batch = random_batch(lane)
    results = []
    for spec in (RecomputeSpec(), RecomputeSpec(attention=policy, moe=policy)):
        model = shaken(model_of(lane, ALL))
        recompute.apply(model, spec, compiled=False)
        model(*batch).total.backward()
        results.append((model.blocks[1].block.load, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_wrapped_blocks_are_one_graph(index: int) -> None:
    lane = lane_of(model__engram__gated=True, model__engram__conv_kernel_size=2)
    block = model_of(lane, ALL).blocks[index]
    inner = (RunningSum if index == 0 else TokenWise)(lane.model.hidden_size)
    torch.nn.init.normal_(inner.map.weight, generator=torch.Generator().manual_seed(1))
    block.block = inner
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 10, 12, generator=torch.Generator().manual_seed(2))
    context = Context(document_ids=torch.tensor([[0] * 4 + [1] * 6, [0] * 10]))
    results = []
    for run in (block, compiled):
        block.zero_grad()
        delta = run(x, context).delta
        delta.square().sum().backward()
        results.append((delta.detach(), [p.grad.clone() for p in block.parameters()]))
    torch.testing.assert_close(results[1], results[0])
