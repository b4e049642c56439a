"""Depth routing against a loop that decides on one token after the other."""

import math
from fractions import Fraction

import pytest
import torch

from lanewise.lane.tax_rules import exact_share, slots
from lanewise.lane.taxes import DepthRoutingSpec
from lanewise.models.depth_routing import DepthRouted, select
from lanewise.models.layers import SKIPPED_ID, Context
from tests.models.simple_blocks import TokenWise, extend_in_pieces, pieces

HIDDEN = 6
SHARES = (0.5, 0.3, 0.125, 1.0)


def routed(capacity_factor: float = 0.5) -> DepthRouted:
    block = DepthRouted(
        TokenWise(HIDDEN), DepthRoutingSpec(capacity_factor=capacity_factor), hidden_size=HIDDEN
    )
    block.reset_parameters(std=0.7, output_std=0.7, generator=torch.Generator().manual_seed(0))
    return block.double()


def inputs(length: int = 13, rows: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, HIDDEN, generator=generator, dtype=torch.float64)


def loop(scores: list[float], share: Fraction, documents: list[int]) -> list[bool]:
    """Is each token taken, told in the words of the definition."""
    taken: list[bool] = []
    for t, score in enumerate(scores):
        first = documents.index(documents[t])
        better = sum(other >= score for other in scores[first:t])
        so_far = t - first + 1
        is_wanted = better < math.ceil(share * so_far)
        taken.append(is_wanted and sum(taken[first:t]) < math.floor(share * so_far))
    return taken


def scores_of(kind: str, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    random = torch.randn(3, length, generator=generator)
    ramp = torch.arange(length).float().expand(3, -1)
    return {"random": random, "rising": ramp, "falling": -ramp, "equal": 0 * ramp}[kind]


@pytest.mark.parametrize("capacity_factor", SHARES)
@pytest.mark.parametrize("kind", ["random", "rising", "falling", "equal"])
@pytest.mark.parametrize("length", [1, 2, 63])
def test_selection_is_the_loop(capacity_factor: float, kind: str, length: int) -> None:
    scores, share = scores_of(kind, length), exact_share(capacity_factor)
    found = select(scores, share)
    for row, taken in zip(scores.tolist(), found.taken.tolist(), strict=True):
        assert taken == loop(row, share, [0] * length)
    assert found.num_taken.tolist() == found.taken.sum(1).tolist()
    assert int(found.num_taken.max()) <= slots(share, length)


@pytest.mark.parametrize("capacity_factor", SHARES)
def test_documents_are_selected_as_if_alone_and_fit_into_the_row(capacity_factor: float) -> None:
    scores, share = scores_of("random", 40), exact_share(capacity_factor)
    ids = torch.zeros(3, 40, dtype=torch.int64)
    ids[0] = torch.arange(40)  # documents of length 1
    ids[1, 7:] += 1
    ids[1, 8:] += 1
    ids[2] = torch.arange(40) // 3
    found = select(scores, share, document_ids=ids)
    for row in range(3):
        assert found.taken[row].tolist() == loop(scores[row].tolist(), share, ids[row].tolist())
    assert int(found.taken.sum(1).max()) <= slots(share, 40)


@pytest.mark.parametrize("capacity_factor", SHARES)
def test_selection_in_pieces_is_selection_of_the_whole(capacity_factor: float) -> None:
    scores, share = scores_of("random", 23), exact_share(capacity_factor)
    whole = select(scores, share)
    for lengths in pieces(23):
        taken_before, end, parts = None, 0, []
        for length in lengths:
            end += length
            part = select(scores[:, :end], share, num_new=length, num_taken_before=taken_before)
            taken_before = part.num_taken
            parts.append(part.taken)
        assert torch.equal(torch.cat(parts, dim=1), whole.taken)
        assert torch.equal(taken_before, whole.num_taken)


def test_long_rows_are_compared_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, share = scores_of("random", 40), exact_share(0.3)
    whole = select(scores, share).taken
    monkeypatch.setattr("lanewise.models.depth_routing._QUERIES_AT_ONCE", 7)
    assert torch.equal(select(scores, share).taken, whole)


def test_shares_are_exact_where_products_of_floats_are_not() -> None:
    assert math.floor(0.29 * 100) == 28
    assert slots(exact_share(0.29), 100) == 29


@pytest.mark.parametrize("capacity_factor", SHARES)
@pytest.mark.parametrize("length", [1, 13])
def test_tokens_taken_get_the_gated_block_and_others_nothing(
    capacity_factor: float, length: int
) -> None:
    block, x = routed(capacity_factor), inputs(length)
    found = block(x)
    everything = block.block(x)
    ids = everything.expert_ids.view(2, length, -1)
    for row in range(2):
        scores = [float(block.depth_router.weight[0].detach() @ x_t) for x_t in x[row]]
        taken = loop(scores, exact_share(capacity_factor), [0] * length)
        for t in range(length):
            gate = 1 / (1 + math.exp(-scores[t])) if taken[t] else 0.0
            torch.testing.assert_close(
                found.delta[row, t], gate * everything.delta[row, t], rtol=1e-12, atol=1e-13
            )
            wanted = ids[row, t] if taken[t] else torch.full_like(ids[row, t], SKIPPED_ID)
            assert torch.equal(found.expert_ids.view(2, length, -1)[row, t], wanted)


def test_the_block_sees_a_static_number_of_tokens() -> None:
    block = routed(0.3)
    for seed in range(3):
        block(inputs(20, seed=seed))
    assert block.block.shapes == [torch.Size([2, 6, HIDDEN])] * 3


def test_routing_is_counted_for_tokens_taken_and_can_be_followed() -> None:
    block, x = routed(), inputs()
    output = block(x)
    block.observe(output)
    assert block.block.observed[0] is output.expert_ids
    again = block(x, Context(expert_ids=output.expert_ids))
    assert torch.equal(again.expert_ids, output.expert_ids)
    other = torch.where(output.expert_ids < 0, SKIPPED_ID, 1)
    assert torch.equal(block(x, Context(expert_ids=other)).expert_ids, other)


@pytest.mark.parametrize("capacity_factor", SHARES)
def test_extend_in_any_pieces_is_forward(capacity_factor: float) -> None:
    block, x = routed(capacity_factor), inputs()
    whole = block(x)
    for lengths in pieces(13):
        found = extend_in_pieces(block, x, lengths)
        torch.testing.assert_close(found, whole.delta, rtol=1e-12, atol=1e-13)
    output, _ = block.extend(x, None)
    assert torch.equal(output.expert_ids, whole.expert_ids)


def test_documents_do_not_meet() -> None:
    block, x = routed(), inputs(11, rows=1)
    ids = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3]])
    alone = [block(x[:, a:b]).delta for a, b in ((0, 3), (3, 4), (4, 9), (9, 11))]
    torch.testing.assert_close(
        block(x, Context(document_ids=ids)).delta, torch.cat(alone, dim=1), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("changed", range(13))
def test_a_token_changes_nothing_before_it(changed: int) -> None:
    block, x = routed(), inputs()
    other = x.clone()
    other[:, changed] = 3 * block.depth_router.weight[0]  # the best score of the row
    before, after = block(x).delta, block(other).delta
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-13, atol=1e-13)


def test_gradients_match_finite_differences_and_the_router_learns() -> None:
    block, x = routed(), inputs(6, rows=1).requires_grad_()
    names = [name for name, _ in block.named_parameters()]

    def delta(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,)).delta

    parameters = [p.detach().clone().requires_grad_() for p in block.parameters()]
    assert torch.autograd.gradcheck(delta, (x, *parameters), fast_mode=True)
    block(x).delta.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in block.parameters())
