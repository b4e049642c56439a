import math

import pytest
import torch

from lanewise.lane.features import FEATURES
from lanewise.models.model import IGNORE_INDEX, HybridModel
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import capabilities
from lanewise.ops.opset import OpSet
from tests.models.micro import micro_lane, micro_model, random_batch, resolved_micro


def resolved_model(dtype: torch.dtype = torch.float64, **features: str) -> HybridModel:
    resolved = resolved_micro(**features)
    ops = OpSet.resolve(
        resolved.op_preferences, lane_problems(resolved.lane, "cpu"), capabilities("cpu")
    )
    model = micro_model(resolved.lane, ops=ops, switches=resolved.model_switches)
    return model.to(dtype)


def test_a_token_changes_nothing_before_it() -> None:
    lane = micro_lane()
    model = micro_model(lane).double().eval()
    tokens, _ = random_batch(lane)
    other = tokens.clone()
    other[:, 6] = (other[:, 6] + 1) % lane.model.vocab_size
    with torch.no_grad():
        before, after = model.trunk(tokens).hidden, model.trunk(other).hidden
    torch.testing.assert_close(after[:, :6], before[:, :6], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[:, 6:], before[:, 6:])


@pytest.mark.parametrize("pattern", ["GD", "AD", "AGD"])
@pytest.mark.parametrize("pieces", [[10], [1] * 10, [6, 1, 3]], ids=str)
def test_a_dense_model_decodes_as_it_trains(pattern: str, pieces: list[int]) -> None:
    lane = micro_lane(model__pattern=pattern)
    model = micro_model(lane).double().eval()
    tokens, _ = random_batch(lane)
    state, hidden = None, []
    with torch.no_grad():
        for piece in tokens.split(pieces, dim=1):
            newest, state = model.extend(piece, state)
            hidden.append(newest)
        expected = model.trunk(tokens).hidden
    torch.testing.assert_close(torch.cat(hidden, dim=1), expected, rtol=1e-10, atol=1e-11)


def test_start_loss_is_about_uniform() -> None:
    lane = micro_lane()
    loss = micro_model(lane)(*random_batch(lane)).cross_entropy
    assert loss.item() == pytest.approx(math.log(lane.model.vocab_size), rel=0.02)


def test_ignored_targets_do_not_count() -> None:
    lane = micro_lane()
    model = micro_model(lane).eval()
    tokens, targets = random_batch(lane)
    cut = targets.clone()
    cut[:, 5:] = IGNORE_INDEX
    first_half = model(tokens[:, :5], targets[:, :5]).cross_entropy
    torch.testing.assert_close(model(tokens, cut).cross_entropy, first_half)


def test_equal_seeds_give_equal_weights_and_unequal_seeds_do_not() -> None:
    first, again, other = (micro_model(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding"], other["embedding"])


def test_output_projections_start_smaller_with_depth() -> None:
    lane = micro_lane(model__num_layers=8, model__hidden_size=24)
    model = micro_model(lane)
    std, scaled = lane.model.init_std, lane.model.init_std / math.sqrt(2 * 8)
    assert model.blocks[0].mla.out.weight.std().item() == pytest.approx(scaled, rel=0.3)
    assert model.blocks[1].w_out.std().item() == pytest.approx(scaled, rel=0.3)
    assert model.head.std().item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize(
    "key", [f.key for f in FEATURES if f.built and f.equal_mathematics and f.settings["on"].ops]
)
def test_both_states_of_a_feature_compute_the_same_loss_and_gradients(key: str) -> None:
    lane = micro_lane()
    batch = random_batch(lane)
    results = []
    for state in ("off", "on"):
        model = resolved_model(**{key: state})
        loss = model(*batch).total
        loss.backward()
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    (loss_off, grads_off), (loss_on, grads_on) = results
    torch.testing.assert_close(loss_on, loss_off, rtol=1e-10, atol=1e-12)
    for name, grad in grads_off.items():
        torch.testing.assert_close(grads_on[name], grad, rtol=1e-7, atol=1e-10, msg=name)


def test_full_stack_and_bare_lane_compute_the_same_loss() -> None:
    batch = random_batch(micro_lane())
    built = [f.key for f in FEATURES if f.built and f.equal_mathematics and f.settings["on"].ops]
    bare = resolved_model(**dict.fromkeys(built, "off"))(*batch).total
    full = resolved_model(**dict.fromkeys(built, "on"))(*batch).total
    torch.testing.assert_close(full, bare, rtol=1e-10, atol=1e-12)


def test_expert_bias_update_reports_none_without_expert_layers() -> None:
    assert micro_model(micro_lane(model__pattern="AM")).update_expert_bias() is None


def test_bf16_compute_keeps_an_fp32_residual_stream() -> None:
    lane = micro_lane(precision__compute="bf16")
    model = micro_model(lane)
    tokens, targets = random_batch(lane)
    exact = micro_model(micro_lane())(tokens, targets).total
    loss = model(tokens, targets).total
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
