"""Whole hybrid models on a CUDA device: the same losses, gradients and decoded states as on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch

from lanewise.lane.features import BY_KEY, FEATURES
from lanewise.lane.schema import Lane
from lanewise.models.model import HybridModel, Loss
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import capabilities
from lanewise.ops.opset import OpSet
from lanewise.train.data.token_facts import token_facts
from lanewise.train.data.tokens import ByteTokenizer
from tests.models.test_whole_model import LENGTH, TAXES, VARIANTS, hybrid_lane, random_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


SPEED_FEATURES = [
    f.key for f in FEATURES if f.built and f.equal_mathematics and f.settings["on"].ops
]


def model_on(
    device: str,
    lane: Lane,
    *,
    seed: int = 0,
    asked: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> HybridModel:
    """In fp64, with everything switched on, and the device's own default backends where none is asked for."""
    switches = dict.fromkeys((*TAXES, "stp", "extra_aux_losses"), True)
    switches["mtp"] = lane.model.mtp is not None
    ops = OpSet.resolve(asked, lane_problems(lane, device, switches), capabilities(device))
    facts = torch.from_numpy(token_facts(ByteTokenizer(), lane.model.vocab_size))
    model = HybridModel(lane, model_switches=switches, ops=ops, token_facts=facts)
    generator = torch.Generator().manual_seed(seed)
    model.reset_parameters(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.double().to(device)


def loss_of(model: HybridModel) -> Loss:
    device = model.embedding.device
    tokens = random_tokens(length=LENGTH + 1).to(device)
    ids = torch.tensor([[0] * 4 + [1] * 6 + [2] * (LENGTH - 10)] * 2, device=device)
    loss: Loss = model(
        tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), document_ids=ids, step=3
    )
    return loss


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_the_cpu(variant: str) -> None:
    lane = hybrid_lane(variant)
    here, there = model_on("cpu", lane), model_on("cuda", lane)
    expected, found = loss_of(here), loss_of(there)
    torch.testing.assert_close(found.total.cpu(), expected.total, rtol=1e-9, atol=1e-9)
    assert found.parts.keys() == expected.parts.keys()
    expected.total.backward()
    found.total.backward()
    gradients = dict(there.named_parameters())
    for name, parameter in here.named_parameters():
        wanted, got = parameter.grad, gradients[name].grad
        assert (wanted is None) == (got is None), name
        if wanted is not None and got is not None:
            torch.testing.assert_close(got.cpu(), wanted, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("key", SPEED_FEATURES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_states_of_a_speed_feature_compute_the_same(variant: str, key: str) -> None:
    lane = hybrid_lane(variant)
    results = []
    for state in ("off", "on"):
        asked = {op: names["cuda"] for op, names in BY_KEY[key].settings[state].ops.items()}
        model = model_on("cuda", lane, asked=asked)
        loss = loss_of(model).total
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    (loss_off, off), (loss_on, on) = results
    torch.testing.assert_close(loss_on, loss_off, rtol=1e-9, atol=1e-9)
    for name, gradient in off.items():
        torch.testing.assert_close(on[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_equals_the_parallel_forward(variant: str) -> None:
    model = model_on("cuda", hybrid_lane(variant)).eval()
    tokens = random_tokens().cuda()
    with torch.no_grad():
        parallel = model.trunk(tokens).hidden
        state, parts = None, []
        for piece in torch.split(tokens, (4, 1, 1, 3, LENGTH - 9), dim=1):
            hidden, state = model.extend(piece, state)
            parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, dim=1), parallel, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("residual", ["fp32", "bf16"])
def test_bf16_stays_close_to_fp32(residual: str) -> None:
    lane = hybrid_lane("everything")
    exact = model_on("cuda", lane).float()
    precision = lane.precision.model_copy(update={"compute": "bf16", "residual": residual})
    mixed = model_on("cuda", lane.model_copy(update={"precision": precision})).float()
    expected, found = loss_of(exact).cross_entropy, loss_of(mixed).cross_entropy
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.05)
