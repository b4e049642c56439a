"""The n-gram hash embedding against a loop in Python's own integers."""

import pytest
import torch

from lanewise.lane import params
from lanewise.lane.flops import lane_flops
from lanewise.lane.load import load_lane
from lanewise.lane.primes import largest_primes
from lanewise.lane.schema import NgramEmbeddingSpec
from lanewise.models.ngram_embedding import NgramEmbedding
from tests.models.micro import micro_lane, micro_model, random_batch

SPEC = NgramEmbeddingSpec(orders=(2, 3), num_heads=2, num_rows=29, head_dim=3)
VOCAB = 50


def embedding(spec: NgramEmbeddingSpec = SPEC, vocab_size: int = VOCAB) -> NgramEmbedding:
    module = NgramEmbedding(spec, hidden_size=8, vocab_size=vocab_size)
    module.reset_parameters(std=0.5, generator=torch.Generator().manual_seed(0))
    return module.double()


def with_projection(module: NgramEmbedding) -> NgramEmbedding:
    torch.nn.init.normal_(module.proj.weight, generator=torch.Generator().manual_seed(1))
    return module


def tokens_of(rows: int, length: int, vocab_size: int = VOCAB, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (rows, length), generator=generator)


def oracle(
    module: NgramEmbedding,
    spec: NgramEmbeddingSpec,
    tokens: torch.Tensor,
    documents: torch.Tensor,
) -> torch.Tensor:
    """Token by token, table by table, with unbounded integers."""
    primes = largest_primes(len(spec.orders) * spec.num_heads, at_most=spec.num_rows)
    tables = module.tables.view(-1, spec.num_rows, spec.head_dim)
    out = torch.zeros(*tokens.shape, module.proj.weight.shape[0], dtype=torch.float64)
    for row in range(len(tokens)):
        for t in range(tokens.shape[1]):
            found = []
            for table, prime in enumerate(primes):
                value = 0
                for back in range(spec.orders[table // spec.num_heads]):
                    inside = t >= back and documents[row, t - back] == documents[row, t]
                    token = int(tokens[row, t - back]) if inside else module.pad_id
                    value ^= int(module.multipliers[back, table]) * token
                found.append(tables[table, value % prime])
            out[row, t] = module.proj.weight @ torch.cat(found)
    return out


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("orders", [(2, 3), (1,), (4, 2)])
def test_it_is_the_loop(length: int, orders: tuple[int, ...]) -> None:
    spec = SPEC.model_copy(update={"orders": orders})
    module = with_projection(embedding(spec))
    tokens = tokens_of(2, length)
    expected = oracle(module, spec, tokens, torch.zeros_like(tokens))
    torch.testing.assert_close(module(tokens), expected, rtol=1e-12, atol=1e-12)


def test_documents_are_hashed_as_if_alone() -> None:
    module = with_projection(embedding())
    tokens = tokens_of(1, 9)
    ids = torch.tensor([[4, 4, 4, 5, 9, 9, 9, 9, 3]])
    torch.testing.assert_close(
        module(tokens, ids), oracle(module, SPEC, tokens, ids), rtol=1e-12, atol=1e-12
    )
    alone = torch.cat([module(tokens[:, a:b]) for a, b in ((0, 3), (3, 4), (4, 8), (8, 9))], dim=1)
    torch.testing.assert_close(module(tokens, ids), alone, rtol=1e-12, atol=1e-12)


def test_the_last_positions_alone_are_those_of_the_whole() -> None:
    module = with_projection(embedding())
    tokens = tokens_of(2, 9)
    for last in (1, 4, 9):
        torch.testing.assert_close(module(tokens, last=last), module(tokens)[:, -last:])


def test_a_start_differs_from_every_token_before_it() -> None:
    module = embedding()
    first = module.row_ids(torch.tensor([[7]]))[0, 0]
    pairs = torch.stack([torch.arange(VOCAB), torch.full((VOCAB,), 7)], dim=1)
    after = module.row_ids(pairs)[:, 1]
    assert not (after == first).all(dim=1).any()


def test_the_largest_vocabulary_neither_overflows_nor_leaves_its_table() -> None:
    spec = NgramEmbeddingSpec(orders=(2, 5), num_heads=3, num_rows=101, head_dim=1)
    module = NgramEmbedding(spec, hidden_size=2, vocab_size=(1 << 31) - 1)
    assert int(module.multipliers.max()) * module.pad_id < 1 << 62
    tokens = torch.full((1, 7), (1 << 31) - 2)
    tokens[0, ::2] = 0
    rows = module.row_ids(tokens) - torch.arange(6) * spec.num_rows
    assert (rows >= 0).all()
    assert (rows < module.primes).all()
    with pytest.raises(ValueError, match="use at most"):
        NgramEmbedding(spec, hidden_size=2, vocab_size=1 << 31)


def test_multipliers_are_odd_different_and_always_the_same() -> None:
    used = embedding().multipliers[embedding().multipliers > 0]
    assert (used % 2 == 1).all()
    assert len(set(used.tolist())) == len(used) == 2 * 2 + 3 * 2
    # The first output of SplitMix64 seeded with 0 is 0xE220A8397B1DCDAF (the published test vector).
    assert int(embedding().multipliers[0, 0]) == 0xE220A8397B1DCDAF >> 33 | 1


def test_hashes_collide_about_as_often_as_chance() -> None:
    spec = NgramEmbeddingSpec(orders=(2,), num_heads=4, num_rows=4096, head_dim=1)
    module = NgramEmbedding(spec, hidden_size=2, vocab_size=256)
    pairs = torch.cartesian_prod(torch.arange(48), torch.arange(48))
    rows = module.row_ids(pairs)[:, 1]
    expected = 4096 * (1 - (1 - 1 / 4096) ** len(pairs))
    for table in range(4):
        assert len(rows[:, table].unique()) == pytest.approx(expected, rel=0.1)
    # Heads collide independently: together they tell all pairs apart.
    assert len(rows.unique(dim=0)) == len(pairs)


def test_gradients_match_finite_differences() -> None:
    module = with_projection(embedding())
    tokens = tokens_of(1, 4)

    def run(tables: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        values = {"tables": tables, "proj.weight": weight}
        return torch.func.functional_call(module, values, (tokens,))

    inputs = [p.detach().clone().requires_grad_() for p in (module.tables, module.proj.weight)]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def ngram_lane():
    return micro_lane(
        model__ngram_embedding={"orders": [2, 3], "num_heads": 2, "num_rows": 31, "head_dim": 3}
    )


def test_parameters_are_those_of_the_formula() -> None:
    lane = ngram_lane()
    model = micro_model(lane)
    assert lane.model.ngram_embedding
    assert model.ngram is not None
    counted = sum(parameter.numel() for parameter in model.ngram.parameters())
    assert counted == params.ngram_params(lane.model.ngram_embedding, 12).total
    assert sum(p.numel() for p in model.parameters()) == lane_flops(lane).params_total


def test_the_published_table_has_its_primes() -> None:
    spec = load_lane("nam56r").model.ngram_embedding
    assert spec
    primes = largest_primes(len(spec.orders) * spec.num_heads, at_most=spec.num_rows)
    assert len(set(primes)) == 16
    assert 499_000 < min(primes) < max(primes) < 500_000


def test_a_model_starts_as_without_the_table_and_then_uses_it() -> None:
    lane = ngram_lane()
    tokens, targets = random_batch(lane)
    with_table, without = micro_model(lane), micro_model()
    torch.testing.assert_close(
        with_table(tokens, targets).total, without(tokens, targets).total, rtol=0, atol=0
    )
    with_table(tokens, targets).total.backward()
    assert with_table.ngram is not None
    assert with_table.ngram.proj.weight.grad.abs().sum() > 0
    with torch.no_grad():
        with_table.ngram.proj.weight += 0.1
    assert with_table(tokens, targets).total != without(tokens, targets).total
