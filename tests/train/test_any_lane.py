"""Whatever loads can be trained: micro lanes of random blocks, sizes and taxes take a step without a number lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lanewise.lane.resolve import resolve
from lanewise.lane.rules import faults
from lanewise.lane.schema import Lane
from tests.models.micro import SPARSE, micro_lane, micro_model, random_batch

TAXES = (
    "stp",
    "engram",
    "hyper_connections",
    "depth_routing",
    "metadata_embeddings",
    "extra_aux_losses",
)
MTP = {"depth": 1, "mlp_hidden_size": 5}

lanes = st.fixed_dictionaries(
    {
        "model__pattern": st.text("AEMRGD", min_size=1, max_size=4),
        "model__num_layers": st.integers(1, 5),
        "model__hidden_size": st.sampled_from([4, 9, 12]),
        "model__attention__form": st.sampled_from(["expanded", "absorbed"]),
        "model__attention__sparse": st.sampled_from(
            [None, {**SPARSE, "layer_ranks": (0,), "full_ranks": ()}]
        ),
        "model__moe__top_k": st.integers(1, 4),
        "model__moe__real_slot_ratio": st.sampled_from([1.0, 0.5]),
        "model__moe__num_expert_groups": st.sampled_from([1, 2]),
        "model__moe__shared_expert_hidden_size": st.sampled_from([0, 5]),
        "model__moe__activation": st.sampled_from(["gelu", "swiglu", "relu2"]),
        "model__mamba__version": st.sampled_from(["mamba3", "mamba2"]),
        "model__mamba__mimo_rank": st.integers(1, 2),
        "model__mamba__rope_fraction": st.sampled_from([0.0, 0.5, 1.0]),
        "model__mamba__chunk_size": st.integers(1, 4),
        "model__mamba__output_norm": st.booleans(),
        "model__recurrent__conv_kernel_size": st.integers(1, 4),
        "model__mtp": st.sampled_from([None, MTP, {**MTP, "depth": 2, "sharing": "shared"}]),
        "model__depth_routing__num_first_layers_kept": st.just(0),
        "model__engram__bottleneck_ratio": st.just(1),
        "batch__sequence_length": st.integers(1, 9),
        "features": st.dictionaries(st.sampled_from(TAXES), st.just("on")),
    }
)


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much],
)
@given(lanes, st.booleans())
def test_a_lane_that_breaks_no_rule_takes_a_finite_step(changes: dict, has_documents: bool) -> None:
    lane: Lane = micro_lane(**changes)
    assume(not list(faults(lane)))
    switches = resolve(
        lane, machine_class="cpu-x86_64-1c", device_type="cpu", mode="train"
    ).model_switches
    model = micro_model(lane, switches=switches).train()
    tokens, targets = random_batch(lane)
    documents = torch.arange(tokens.shape[1]).expand_as(tokens) // 2 if has_documents else None
    loss = model(tokens, targets, document_ids=documents)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert gradients
    assert [name for name, value in gradients.items() if not torch.isfinite(value).all()] == []
