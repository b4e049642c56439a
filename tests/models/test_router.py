"""Choice, gates and bias of the router, against loops and by hand."""

import pytest
import torch
from torch import Tensor

from lanewise.lane.schema import MoeSpec
from lanewise.models.router import Router, count_picks
from tests.models.moe_oracle import choose

WIDTH = 6


def router(num_experts: int = 8, top_k: int = 3, seed: int = 0, **changes: object) -> Router:
    sizes = {
        "num_experts": num_experts,
        "top_k": top_k,
        "expert_hidden_size": 4,
        "shared_expert_hidden_size": 0,
    }
    found = Router(MoeSpec.model_validate({**sizes, **changes}), WIDTH)
    generator = torch.Generator().manual_seed(seed)
    found.reset_parameters(std=1.0, generator=generator)
    found.bias += 0.3 * torch.randn(found.bias.shape, generator=generator)
    return found


def tokens(num: int = 63, seed: int = 3) -> Tensor:
    return torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(seed))


SETTINGS = [
    {},
    {"score_function": "softmax"},
    {"num_expert_groups": 4, "top_k_groups": 2},
    {"num_expert_groups": 8, "top_k_groups": 3},  # one expert a group
    {"real_slot_ratio": 0.5},
    {"real_slot_ratio": 0.5, "score_function": "softmax"},
    {"real_slot_ratio": 0.8, "num_expert_groups": 2, "top_k_groups": 1},
]


@pytest.mark.parametrize("changes", SETTINGS)
@pytest.mark.parametrize("num_tokens", [1, 63])
def test_the_choice_is_that_of_the_loop(changes: dict[str, object], num_tokens: int) -> None:
    found = router(**changes).double()
    x = tokens(num_tokens).double()
    ids, gates, logits, _ = found(x)
    assert ids.shape == gates.shape == (num_tokens, found.num_picks)
    for token in range(num_tokens):
        row = logits[token]
        if found.spec.score_function == "sigmoid":
            scores, null_score = torch.sigmoid(row), 0.5
        else:
            total = row.exp().sum() + found.num_null_slots
            scores, null_score = row.exp() / total, 1 / total.item()
        expected = choose(
            found.spec,
            scores.tolist(),
            found.bias.tolist(),
            null_score=null_score,
            num_null=found.num_null_slots,
        )
        assert ids[token].tolist() == expected
        real = scores[[e for e in expected if e >= 0]]
        torch.testing.assert_close(gates[token][ids[token] >= 0], real / real.sum())


def test_only_experts_of_the_best_groups_are_picked() -> None:
    found = router(num_experts=12, num_expert_groups=4, top_k_groups=2)
    ids = found(tokens()).expert_ids
    groups = [len(set((row // 3).tolist())) for row in ids]
    assert max(groups) <= 2
    assert len({tuple(sorted(set((row // 3).tolist()))) for row in ids}) > 2


def test_a_group_is_judged_by_its_two_best_experts() -> None:
    found = router(num_experts=4, top_k=1, num_expert_groups=2, top_k_groups=1)
    found.bias.zero_()
    assert found.choose(torch.tensor([[0.9, 0.0, 0.5, 0.5]])).item() == 2


def test_the_bias_steers_the_choice_and_never_the_gates() -> None:
    found = router()
    x = tokens()
    before = found(x)
    found.bias += 0.37  # the same for all: nothing may change
    assert torch.equal(found(x).gates, before.gates)
    found.bias[0] += 100.0
    after = found(x)
    assert (after.expert_ids == 0).any(-1).all()
    expected = after.scores.gather(-1, after.expert_ids)
    torch.testing.assert_close(after.gates, expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("score_function", ["sigmoid", "softmax"])
def test_gates_of_real_picks_sum_to_the_scaling_factor(score_function: str) -> None:
    found = router(real_slot_ratio=0.5, score_function=score_function, routed_scaling_factor=2.5)
    routing = found(tokens())
    has_real = (routing.expert_ids >= 0).any(-1)
    torch.testing.assert_close(routing.gates.sum(-1), 2.5 * has_real.float())
    assert not routing.gates[routing.expert_ids < 0].any()


def test_null_slots_are_a_threshold() -> None:
    """Experts above the null value come first, null picks fill the rest; with enough null slots nothing below is real."""
    found = router(num_experts=4, top_k=2, real_slot_ratio=0.5)
    found.bias.zero_()
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.9, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4]])
    slots = torch.cat([scores, torch.full((3, 4), 0.5)], dim=-1)
    assert found.choose(slots).tolist() == [[0, 1, 2, 3], [0, -1, -1, -1], [-1, -1, -1, -1]]


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_extreme_logits_give_finite_gates_and_gradients(ratio: float, logit: float) -> None:
    found = router(real_slot_ratio=ratio)
    with torch.no_grad():
        found.weight.zero_()
        found.weight[:, 0] = logit
    x = torch.ones(5, WIDTH, requires_grad=True)
    routing = found(x)
    routing.gates.sum().backward()
    assert torch.isfinite(routing.gates).all()
    assert found.weight.grad is not None
    assert torch.isfinite(found.weight.grad).all()
    if logit < 0:
        assert not routing.gates.any()  # scores that are 0, or null picks alone


@pytest.mark.parametrize("logit", [-60.0, -88.0, -92.0, -100.0])
def test_scores_near_underflow_give_finite_gradients(logit: float) -> None:
    """The bias picks experts whose softmax scores sum to less than 1 / the largest fp32."""
    found = router(score_function="softmax")
    with torch.no_grad():
        found.weight.zero_()
        found.weight[3:, 0] = logit
        found.bias.copy_(torch.tensor([-50.0] * 3 + [0.0] * 5))
    x = torch.ones(5, WIDTH, requires_grad=True)
    routing = found(x)
    assert (routing.expert_ids >= 3).all()
    (routing.gates * torch.tensor([1.0, -2.0, 8.0])).sum().backward()
    for gradient in (x.grad, found.weight.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
    total = routing.gates.sum(-1)
    torch.testing.assert_close(
        total, torch.full((5,), float(logit == -60.0)), atol=1e-29, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"), [(63, 8, 3), (1, 5, 5), (12, 4, 2)]
)
def test_dealt_routing_is_balanced_and_distinct(
    num_tokens: int, num_experts: int, top_k: int
) -> None:
    found = router(num_experts, top_k)
    ids = found.deal(num_tokens, torch.device("cpu"))
    for token in range(num_tokens):
        assert ids[token].tolist() == [(token * top_k + j) % num_experts for j in range(top_k)]
        assert len(set(ids[token].tolist())) == top_k
    load = torch.bincount(ids.flatten(), minlength=num_experts)
    assert load.max() - load.min() <= 1


def test_followed_ids_get_the_gates_of_their_own_scores() -> None:
    found = router()
    ids = torch.tensor([[7, 0], [-1, 3], [-1, -1]])
    routing = found(tokens(3), ids)
    assert torch.equal(routing.expert_ids, ids)
    a, b = routing.scores[0, 7], routing.scores[0, 0]
    torch.testing.assert_close(routing.gates[0], torch.stack([a, b]) / (a + b))
    assert routing.gates[1:].tolist() == [[0.0, 1.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match=r"is \[3, 2\] and there are 4 tokens"):
        found(tokens(4), ids)


def test_scores_stay_fp32_under_bf16() -> None:
    found = router()
    x = tokens().bfloat16()
    routing = found(x)
    assert routing.logits.dtype == routing.gates.dtype == torch.float32
    torch.testing.assert_close(routing.logits, x.float() @ found.weight.T)


def test_count_picks_puts_null_picks_last_and_leaves_skipped_tokens_out() -> None:
    ids = torch.tensor([[0, 3], [3, -1], [3, 0], [-1, -1], [-2, -2]])
    assert count_picks(ids, 5).tolist() == [2, 0, 0, 3, 0, 3]


def test_the_sign_step_moves_towards_the_mean_load() -> None:
    found = router(4, 2, bias_update_rate=0.5)
    found.bias.zero_()
    found.load.copy_(torch.tensor([10, 0, 5, 5, 0]))
    assert found.update_bias().tolist() == [10, 0, 5, 5, 0]
    assert found.bias.tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert not found.load.any()


def test_the_ema_step_is_the_clipped_average_of_the_relative_error() -> None:
    found = router(4, 1, bias_update="ema", bias_update_rate=0.1)
    found.bias.zero_()
    average = torch.zeros(4)
    expected = torch.zeros(4)
    for load in ([10, 0, 5, 5], [20, 0, 0, 0], [20, 0, 0, 0], *[[20, 0, 0, 0]] * 9):
        error = 1 - torch.tensor(load, dtype=torch.float32) / 5
        average = 0.9 * average + 0.1 * error
        expected += 0.1 * average.clamp(-1, 1)
        found.load.copy_(torch.tensor([*load, 0]))
        found.update_bias()
    assert average.min() < -1  # the clip has bitten
    torch.testing.assert_close(found.bias, expected)


def test_null_copies_share_one_bias_balanced_per_copy() -> None:
    found = router(4, 2, real_slot_ratio=0.5, bias_update_rate=1.0)
    found.bias.zero_()
    found.load.copy_(torch.tensor([2, 2, 2, 2, 8]))  # 4 null slots, 2 picks each: balanced
    found.update_bias()
    assert found.bias.tolist() == [0.0] * 5
    found.load.copy_(torch.tensor([2, 2, 2, 6, 4]))
    found.update_bias()
    assert found.bias.tolist() == [0.0, 0.0, 0.0, -1.0, 1.0]


def test_an_update_without_picks_changes_nothing() -> None:
    for kind in ("sign", "ema"):
        found = router(bias_update=kind)
        before = found.bias.clone()
        found.update_bias()
        assert torch.equal(found.bias, before)


def test_dealt_routing_leaves_the_bias_alone() -> None:
    found = router(routing_mode="forced_balanced")
    before = found.bias.clone()
    found.count(found.deal(5, torch.device("cpu")))
    assert found.update_bias().sum() == 15
    assert torch.equal(found.bias, before)


@pytest.mark.parametrize("kind", ["sign", "ema"])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_updates_even_out_the_load(kind: str, ratio: float) -> None:
    found = router(bias_update=kind, bias_update_rate=0.01, real_slot_ratio=ratio)
    x = tokens(512)
    with torch.no_grad():
        found.weight[0] += 3 * x.mean(0) / x.mean(0).norm()
    loads = []
    for _ in range(200):
        found.count(found(x).expert_ids)
        loads.append(found.update_bias().double())
    spread = [(load[:-1].std(correction=0) / load[:-1].mean()).item() for load in loads]
    assert spread[-1] < 0.1 < spread[0]
    null_share = (loads[-1][-1] / loads[-1].sum()).item()
    assert null_share == pytest.approx(1 - ratio, abs=0.02)
