import pytest
import torch

from lanewise.models.assemble import build_block
from lanewise.models.layers import activate
from lanewise.models.moe import MixtureOfExperts, count_assignments
from tests.models.micro import micro_lane, micro_model, random_batch, reference_ops


def moe(extra_aux_losses: bool = False, **changes: object) -> MixtureOfExperts:
    lane = micro_lane(model__pattern="E", model__num_layers=1, **changes)
    block = build_block(
        "E",
        lane,
        model_switches={"extra_aux_losses": extra_aux_losses},
        ops=reference_ops(lane),
    )
    assert isinstance(block, MixtureOfExperts)
    block.reset_parameters(std=0.5, output_std=0.5, generator=torch.Generator().manual_seed(0))
    return block


def tokens(num: int = 12) -> torch.Tensor:
    return torch.randn(1, num, 12, generator=torch.Generator().manual_seed(3))


def test_bias_rises_for_starved_experts_and_falls_for_crowded_ones() -> None:
    block = moe()
    block.load.copy_(torch.tensor([10, 0, 5, 5]))
    block.update_bias()
    rate = block.spec.bias_update_rate
    torch.testing.assert_close(block.bias, torch.tensor([-rate, rate, 0.0, 0.0]))
    assert not block.load.any()


def test_bias_updates_spread_the_load() -> None:
    block = moe(model__moe__bias_update_rate=0.05).train()
    with torch.no_grad():
        block.router.weight[0] += 3.0 * tokens().mean(1)[0] / tokens().mean(1).norm()
    spread = []
    for _ in range(40):
        block.observe(block(tokens()))
        spread.append(block.update_bias().item())
    assert spread[-1] < 0.7 * spread[0]


def test_coefficient_of_variation_is_of_the_counts() -> None:
    block = moe()
    block.load.copy_(torch.tensor([8, 0, 4, 4]))
    assert block.update_bias().item() == pytest.approx((8.0) ** 0.5 / 4)


def test_bias_steers_selection_and_never_the_gates() -> None:
    block = moe().eval()
    x = tokens()
    before = block(x).delta
    block.bias += 0.37  # the same for all: nothing may change
    torch.testing.assert_close(block(x).delta, before)
    block.bias[0] += 100.0  # expert 0 is always chosen now
    assert not torch.allclose(block(x).delta, before)
    scores = torch.sigmoid(block.router(x.reshape(-1, 12)))
    chosen = torch.topk(scores + block.bias, 2, dim=-1).indices
    assert (chosen == 0).any(-1).all()


def test_load_counts_every_assignment_in_training_and_none_in_evaluation() -> None:
    block = moe().train()
    block.observe(block(tokens(9)))
    assert block.load.sum() == 9 * block.spec.top_k
    block.eval()(tokens(9))
    assert block.load.sum() == 9 * block.spec.top_k


def test_count_assignments() -> None:
    ids = torch.tensor([[0, 3], [3, 1], [3, 0]])
    assert count_assignments(ids, 5).tolist() == [2, 1, 0, 3, 0]


def test_gates_of_the_selected_experts_sum_to_the_scaling_factor() -> None:
    """With equal experts the routed part is the scaling factor times one expert, whoever is selected."""
    block = moe(model__moe__routed_scaling_factor=2.5, model__moe__shared_expert_hidden_size=0)
    with torch.no_grad():
        block.w_in.copy_(block.w_in[:1].expand_as(block.w_in))
        block.w_out.copy_(block.w_out[:1].expand_as(block.w_out))
    x = tokens()
    one_expert = activate(x @ block.w_in[0], "gelu") @ block.w_out[0]
    torch.testing.assert_close(block(x).delta, 2.5 * one_expert)


def test_auxiliary_losses_are_their_formulas() -> None:
    block = moe(
        extra_aux_losses=True,
        model__moe__aux_loss_coefficient=0.5,
        model__moe__z_loss_coefficient=0.25,
    )
    x = tokens()
    logits = block.router(x.reshape(-1, 12))
    scores = torch.sigmoid(logits)
    ids = torch.topk(scores, 2, dim=-1).indices
    share = torch.bincount(ids.flatten(), minlength=4) / ids.numel()
    probability = (scores / scores.sum(-1, keepdim=True)).mean(0)
    expected = 0.5 * 4 * (share * probability).sum() + 0.25 * (
        torch.logsumexp(logits, -1).square().mean()
    )
    losses = block(x).aux_losses
    torch.testing.assert_close(losses["load_balance"] + losses["router_z"], expected)


def test_balanced_routing_has_load_balance_loss_one() -> None:
    block = moe(
        extra_aux_losses=True,
        model__moe__aux_loss_coefficient=1.0,
        model__moe__z_loss_coefficient=0.0,
    )
    with torch.no_grad():
        block.router.weight.zero_()
    assert block(tokens()).aux_losses["load_balance"].item() == pytest.approx(1.0)


def test_the_tax_changes_the_loss_and_only_by_the_auxiliary_part() -> None:
    lane = micro_lane()
    tokens_BT, targets_BT = random_batch(lane)
    plain = micro_model(lane)(tokens_BT, targets_BT)
    taxed = micro_model(lane, switches={"extra_aux_losses": True})(tokens_BT, targets_BT)
    assert torch.equal(plain.cross_entropy, taxed.cross_entropy)
    assert torch.equal(plain.total, plain.cross_entropy)
    assert taxed.total > plain.total


@pytest.mark.parametrize(("activation", "columns"), [("gelu", 6), ("relu2", 6), ("swiglu", 12)])
def test_expert_maps_have_the_width_of_their_activation(activation: str, columns: int) -> None:
    block = moe(model__moe__activation=activation)
    assert block.w_in.shape == (4, 12, columns)
    assert torch.isfinite(block(tokens()).delta).all()
