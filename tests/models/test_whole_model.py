"""Whole hybrid models: no token reaches back, no document reaches over, decoding equals the parallel forward.

Every combination of what changes logits is taken: pattern and block variants times the taxes, each with fp64 oracles
of all ops, so that a leak of any size shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lanewise.lane.schema import Lane
from lanewise.models.model import HybridModel
from tests.models.micro import micro_lane, micro_model

LENGTH = 11
SPARSE = {
    "top_k": 3,
    "index_num_heads": 2,
    "index_head_dim": 6,
    "layer_ranks": [0, 1],
    "full_ranks": [0],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "absorbed": {"model__attention__form": "absorbed"},
    "sparse": {"model__attention__sparse": SPARSE},
    "mimo": {"model__mamba__mimo_rank": 2, "model__mamba__output_norm": True},
    "mamba2": {"model__mamba__version": "mamba2"},
    "null_slots": {"model__moe__real_slot_ratio": 0.5, "model__moe__shared_expert_gate": True},
    "groups": {
        "model__moe__num_expert_groups": 2,
        "model__moe__top_k_groups": 1,
        "model__moe__score_function": "softmax",
    },
    "ngram": {
        "model__ngram_embedding": {"orders": [2, 3], "num_heads": 2, "num_rows": 50, "head_dim": 3}
    },
    "everything": {
        "model__attention__sparse": SPARSE,
        "model__mamba__mimo_rank": 2,
        "model__moe__real_slot_ratio": 0.5,
        "model__ngram_embedding": {"orders": [2], "num_heads": 1, "num_rows": 50, "head_dim": 3},
        "model__mtp": {"depth": 2, "mlp_hidden_size": 10},
    },
}
TAXES = ("metadata_embeddings", "engram", "hyper_connections", "depth_routing")
TAX_SETS = [
    dict(zip(TAXES, switches, strict=True))
    for switches in itertools.product([False, True], repeat=4)
]


def hybrid_lane(variant: str) -> Lane:
    """Seven layers, two of them attention so that one can reuse the other's keys."""
    return micro_lane(
        model__pattern="AEMRAGD",
        model__num_layers=7,
        model__depth_routing={"capacity_factor": 0.5, "num_first_layers_kept": 1},
        batch__sequence_length=LENGTH,
        **VARIANTS[variant],
    )


def hybrid(variant: str, switches: dict[str, bool], seed: int = 0) -> HybridModel:
    """A model in fp64 with weights large enough that every path shows, zero-initialised ones included."""
    model = micro_model(hybrid_lane(variant), switches=switches, seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return model


def random_tokens(num_rows: int = 2, length: int = LENGTH, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(257, (num_rows, length), generator=generator)


def _cases() -> Iterator[Any]:
    for variant in VARIANTS:
        for switches in TAX_SETS:
            on = [key for key, value in switches.items() if value]
            yield pytest.param(variant, switches, id=f"{variant}-{'+'.join(on) or 'plain'}")


CASES = list(_cases())


@pytest.mark.parametrize(("variant", "switches"), CASES)
def test_a_token_changes_no_logit_before_it(variant: str, switches: dict[str, bool]) -> None:
    model, tokens = hybrid(variant, switches), random_tokens()
    with torch.no_grad():
        before = model.logits(model.trunk(tokens).hidden)
        for changed in (1, 6, LENGTH - 1):
            other = tokens.clone()
            other[:, changed] = (other[:, changed] + 101) % 257
            after = model.logits(model.trunk(other).hidden)
            torch.testing.assert_close(
                after[:, :changed], before[:, :changed], rtol=1e-9, atol=1e-9
            )
            assert not torch.allclose(after[:, changed], before[:, changed])


@pytest.mark.parametrize(("variant", "switches"), CASES)
def test_documents_of_a_row_do_not_meet(variant: str, switches: dict[str, bool]) -> None:
    model, tokens = hybrid(variant, switches), random_tokens(1)
    lengths = torch.tensor([1, 4, 1, 5])
    ids = torch.repeat_interleave(torch.tensor([7, 3, 9, 4]), lengths)[None]
    starts = [0, *lengths.cumsum(0).tolist()]
    with torch.no_grad():
        together = model.trunk(tokens, document_ids=ids).hidden
        for start, stop in itertools.pairwise(starts):
            others = random_tokens(1, seed=start + 20)
            others[:, start:stop] = tokens[:, start:stop]
            beside_others = model.trunk(others, document_ids=ids).hidden[:, start:stop]
            torch.testing.assert_close(
                beside_others, together[:, start:stop], rtol=1e-10, atol=1e-10
            )
            alone = model.trunk(tokens[:, start:stop]).hidden
            # The same up to the rotation tables, which are fp32 and see other positions.
            torch.testing.assert_close(alone, together[:, start:stop], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("variant", "switches"), CASES)
def test_decoding_in_any_pieces_equals_the_parallel_forward(
    variant: str, switches: dict[str, bool]
) -> None:
    model, tokens = hybrid(variant, switches), random_tokens()
    with torch.no_grad():
        parallel = model.trunk(tokens).hidden
        for pieces in ((1,) * LENGTH, (4, 1, 1, 3, 2), (LENGTH,)):
            state, parts = None, []
            for piece in torch.split(tokens, pieces, dim=1):
                hidden, state = model.extend(piece, state)
                parts.append(hidden)
            torch.testing.assert_close(torch.cat(parts, dim=1), parallel, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_earlier_state_can_be_taken_up_again(variant: str) -> None:
    model, tokens = hybrid(variant, dict.fromkeys(TAXES, True)), random_tokens()
    with torch.no_grad():
        _, early = model.extend(tokens[:, :5])
        expected, _ = model.extend(tokens[:, 5:], early)
        model.extend(random_tokens(seed=8)[:, :4], early)  # a draft that is thrown away
        again, _ = model.extend(tokens[:, 5:], early)
    assert torch.equal(again, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_finite_with_everything_on(variant: str) -> None:
    lane = hybrid_lane(variant)
    switches = dict.fromkeys((*TAXES, "stp", "extra_aux_losses"), True)
    switches["mtp"] = lane.model.mtp is not None
    model = micro_model(lane, switches=switches)
    tokens = random_tokens(length=LENGTH + 1)
    loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    loss.total.backward()
    assert loss.total.isfinite()
    assert {"stp", "load_balance", "router_z"} <= set(loss.parts)
    bad = [
        n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
    ]
    assert bad == []
