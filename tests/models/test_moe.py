"""Block `E` against the dense formula, its losses against theirs, and its routing modes."""

import pytest
import torch
from torch import Tensor

from lanewise.models.assemble import build_block
from lanewise.models.layers import Context, activate
from lanewise.models.model import HybridModel
from lanewise.models.moe import MixtureOfExperts
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import capabilities
from lanewise.ops.opset import OpSet
from tests.models.micro import micro_lane, micro_model, random_batch
from tests.models.moe_oracle import dense

VARIANTS: list[dict[str, object]] = [
    {},
    {"activation": "swiglu", "shared_expert_gate": True, "routed_scaling_factor": 2.5},
    {"activation": "relu2", "score_function": "softmax", "shared_expert_hidden_size": 0},
    {"num_expert_groups": 2, "top_k_groups": 1},
    {"real_slot_ratio": 0.5},
    {"real_slot_ratio": 0.5, "score_function": "softmax", "shared_expert_gate": True},
    {"real_slot_ratio": 0.5, "num_expert_groups": 2, "top_k_groups": 1, "activation": "swiglu"},
]


def moe(
    extra_aux_losses: bool = False, backend: str = "reference", **changes: object
) -> MixtureOfExperts:
    settings = {f"model__moe__{key}": value for key, value in changes.items()}
    lane = micro_lane(model__pattern="E", model__num_layers=1, **settings)
    problems = lane_problems(lane, "cpu")
    block = build_block(
        "E",
        lane,
        model_switches={"extra_aux_losses": extra_aux_losses},
        ops=OpSet.resolve({"moe_experts": (backend,)}, problems, capabilities("cpu")),
    )
    assert isinstance(block, MixtureOfExperts)
    generator = torch.Generator().manual_seed(0)
    block.reset_parameters(std=0.5, output_std=0.5, generator=generator)
    block.router.bias += 0.1 * torch.randn(block.router.bias.shape, generator=generator)
    return block


def inputs(num: int = 12, rows: int = 1) -> Tensor:
    return torch.randn(rows, num, 12, generator=torch.Generator().manual_seed(3))


def by_name(block: MixtureOfExperts) -> dict[str, Tensor]:
    return dict(block.named_parameters())


@pytest.mark.parametrize("backend", ["reference", "padded.torch", "sorted.torch"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_output_and_gradients_are_those_of_the_dense_formula(
    variant: dict[str, object], backend: str
) -> None:
    block = moe(backend=backend, **variant).double()
    x = inputs(21).double().requires_grad_()
    arguments = [x, *block.parameters()]
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).double()
    expected = dense(block, x)
    delta = block(x).delta
    torch.testing.assert_close(delta, expected, rtol=1e-11, atol=1e-12)
    names = ["x", *by_name(block)]
    found = torch.autograd.grad(delta, arguments, upstream)
    truth = torch.autograd.grad(expected, arguments, upstream)
    for name, ours, theirs in zip(names, found, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("num_tokens", [1, 63])
def test_odd_numbers_of_tokens(num_tokens: int) -> None:
    block = moe(backend="sorted.torch", real_slot_ratio=0.5).double()
    x = inputs(num_tokens).double()
    torch.testing.assert_close(block(x).delta, dense(block, x), rtol=1e-11, atol=1e-12)


FIXED = {
    "one expert empty": [[0, 1], [1, 3], [3, 0], [0, 3], [1, 0]],
    "all to one": [[2, -1]] * 5,
    "null token": [[0, 1], [-1, -1], [3, 2], [-1, 0], [1, -1]],
    "no pick is real": [[-1, -1]] * 5,
}


@pytest.mark.parametrize("routing", FIXED)
@pytest.mark.parametrize("backend", ["padded.torch", "sorted.torch"])
def test_gradcheck_through_a_fixed_choice(routing: str, backend: str) -> None:
    block = moe(backend=backend, shared_expert_gate=True).double()
    ids = torch.tensor(FIXED[routing])
    names = list(by_name(block))
    x = inputs(5).double().requires_grad_()

    def delta(x: Tensor, *values: Tensor) -> Tensor:
        weights = dict(zip(names, values, strict=True))
        output = torch.func.functional_call(block, weights, (x, Context(expert_ids=ids)))
        return output.delta

    values = tuple(value.detach().clone().requires_grad_() for value in block.parameters())
    assert torch.autograd.gradcheck(delta, (x, *values), fast_mode=True)
    torch.testing.assert_close(delta(x, *values), dense(block, x, ids), rtol=1e-11, atol=1e-12)


def test_a_token_with_null_picks_alone_gets_the_shared_expert() -> None:
    block = moe(real_slot_ratio=0.5)
    block.router.bias[-1] = 100.0
    x = inputs().requires_grad_()
    output = block(x)
    assert (output.expert_ids == -1).all()
    assert block.shared_in is not None
    assert block.shared_out is not None
    shared = block.shared_out(activate(block.shared_in(x), "gelu"))
    torch.testing.assert_close(output.delta, shared)
    output.delta.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_bf16_compute_routes_like_fp32() -> None:
    block = moe()
    x = inputs(40).bfloat16()
    output = block(x)
    assert output.delta.dtype == torch.bfloat16
    assert torch.equal(output.expert_ids, block(x.float()).expert_ids)
    torch.testing.assert_close(output.delta.float(), block(x.float()).delta, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("score_function", ["sigmoid", "softmax"])
def test_auxiliary_losses_of_scores_that_underflow_are_finite(score_function: str) -> None:
    block = moe(extra_aux_losses=True, real_slot_ratio=0.5, score_function=score_function)
    with torch.no_grad():
        block.router.weight.fill_(-30.0)
    x = inputs().abs().requires_grad_()
    output = block(x)
    (output.delta.sum() + sum(output.aux_losses.values())).backward()
    for tensor in (*output.aux_losses.values(), x.grad, block.router.weight.grad):
        assert tensor is not None
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_auxiliary_losses_are_their_formulas(variant: dict[str, object]) -> None:
    coefficients = {"aux_loss_coefficient": 0.5, "z_loss_coefficient": 0.25}
    block = moe(extra_aux_losses=True, **coefficients, **variant).double()
    x = inputs(21).double()
    output = block(x)
    logits = x.reshape(-1, 12) @ block.router.weight.T
    share = torch.tensor([(output.expert_ids == e).sum().item() for e in range(4)]).double()
    share /= (output.expert_ids >= 0).sum()
    score = logits.exp() if block.spec.score_function == "softmax" else torch.sigmoid(logits)
    probability = (score / score.sum(-1, keepdim=True)).mean(0)
    balance = 0.5 * 4 * (share * probability).sum()
    z = 0.25 * (logits.exp().sum(-1).log() ** 2).mean()
    torch.testing.assert_close(output.aux_losses["load_balance"], balance)
    torch.testing.assert_close(output.aux_losses["router_z"], z)


def test_balanced_routing_has_load_balance_loss_one() -> None:
    block = moe(
        extra_aux_losses=True, aux_loss_coefficient=1.0, routing_mode="forced_balanced"
    ).train()
    with torch.no_grad():
        block.router.weight.zero_()
    assert block(inputs()).aux_losses["load_balance"].item() == pytest.approx(1.0)


def test_losses_of_null_picks_alone_are_finite() -> None:
    block = moe(extra_aux_losses=True, real_slot_ratio=0.5)
    block.router.bias[-1] = 100.0
    losses = block(inputs()).aux_losses
    assert losses["load_balance"].item() == 0.0
    assert torch.isfinite(losses["router_z"])


def test_the_tax_changes_the_loss_and_only_by_the_auxiliary_part() -> None:
    lane = micro_lane()
    tokens_BT, targets_BT = random_batch(lane)
    plain = micro_model(lane)(tokens_BT, targets_BT)
    taxed = micro_model(lane, switches={"extra_aux_losses": True})(tokens_BT, targets_BT)
    assert torch.equal(plain.cross_entropy, taxed.cross_entropy)
    assert torch.equal(plain.total, plain.cross_entropy)
    assert taxed.total > plain.total


def test_forward_counts_nothing_and_observe_counts_every_pick() -> None:
    block = moe(real_slot_ratio=0.5).train()
    for _ in range(2):  # a layer is computed again in the backward pass
        output = block(inputs(9))
    assert not block.router.load.any()
    block.observe(output)
    assert block.update_bias().sum() == 9 * 4
    assert not block.router.load.any()


def test_training_counts_and_evaluation_does_not() -> None:
    lane = micro_lane(model__pattern="EMER", model__moe__real_slot_ratio=0.5)
    model = micro_model(lane)
    model(*random_batch(lane))
    model(*random_batch(lane))
    loads = model.update_expert_bias()
    assert loads is not None
    assert loads.shape == (2, 5)
    assert loads.sum(-1).tolist() == [2 * 20 * 4] * 2  # micro-batches × tokens × picks
    model.eval()(*random_batch(lane))
    loads = model.update_expert_bias()
    assert loads is not None
    assert not loads.any()


@pytest.mark.parametrize("variant", [*VARIANTS, {"routing_mode": "forced_balanced"}])
@pytest.mark.parametrize("pieces", [[1] * 8, [3, 1, 4], [8]])
def test_extend_in_any_pieces_is_forward(variant: dict[str, object], pieces: list[int]) -> None:
    block = moe(**variant).double().eval()
    x = inputs(8, rows=2).double()
    parts, state = [], None
    for piece in x.split(pieces, dim=1):
        output, state = block.extend(piece, state)
        assert state == ()
        parts.append(output.delta)
    torch.testing.assert_close(torch.cat(parts, 1), block(x).delta, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("changed", [0, 5, 9])
def test_tokens_do_not_meet(variant: dict[str, object], changed: int) -> None:
    block = moe(**variant).double().eval()
    x = inputs(10).double()
    other = x.clone()
    other[:, changed] += 1.0
    with torch.no_grad():
        moved = (block(other).delta - block(x).delta).abs().amax(-1)[0]
    assert moved[changed] > 1e-6
    moved[changed] = 0
    assert moved.max() < 1e-13


def test_forced_balance_deals_in_training_and_chooses_in_evaluation() -> None:
    block = moe(routing_mode="forced_balanced").train()
    x = inputs(10)
    ids = block(x).expert_ids
    assert torch.equal(ids, torch.arange(20).view(10, 2) % 4)
    torch.testing.assert_close(block(x).delta.double(), dense(block, x, ids), rtol=1e-4, atol=1e-5)
    learned = moe().eval()
    assert torch.equal(block.eval()(x).expert_ids, learned(x).expert_ids)


def test_replay_follows_in_training_and_refuses_to_train_without_ids() -> None:
    block = moe(routing_mode="replayed").train()
    x = inputs(3)
    ids = torch.tensor([[3, 0], [1, 2], [-1, 0]])
    output = block(x, Context(expert_ids=ids))
    assert torch.equal(output.expert_ids, ids)
    torch.testing.assert_close(output.delta.double(), dense(block, x, ids), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="--replay-routing"):
        block(x)
    assert block.eval()(x).expert_ids.shape == (3, 2)


def test_a_model_threads_routing_to_its_expert_layers_in_order() -> None:
    lane = micro_lane(model__pattern="EMER", model__moe__routing_mode="replayed")
    model = micro_model(lane)
    tokens, targets = random_batch(lane)
    generator = torch.Generator().manual_seed(5)
    ids = [torch.rand(20, 4, generator=generator).topk(2).indices for _ in range(2)]
    loss = model(tokens, targets, expert_ids=ids)
    assert all(map(torch.equal, loss.expert_ids, ids))
    swapped = model(tokens, targets, expert_ids=ids[::-1])
    assert not torch.equal(swapped.total, loss.total)
    with pytest.raises(ValueError, match="routing of 1 layers and the model has 2 E layers"):
        model(tokens, targets, expert_ids=ids[:1])


def test_following_the_own_choice_changes_no_bit() -> None:
    for changes in ({}, {"model__moe__real_slot_ratio": 0.5}):
        lane = micro_lane(**changes)
        batch = random_batch(lane)
        model, again = micro_model(lane), micro_model(lane)
        loss = model(*batch)
        followed = again(*batch, expert_ids=loss.expert_ids)
        loss.total.backward()
        followed.total.backward()
        assert torch.equal(followed.total, loss.total)
        for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)


def test_the_model_is_causal_with_every_router_variant() -> None:
    for variant in VARIANTS:
        lane = micro_lane(**{f"model__moe__{key}": value for key, value in variant.items()})
        model: HybridModel = micro_model(lane).double().eval()
        tokens, _ = random_batch(lane)
        other = tokens.clone()
        other[:, 6] = (other[:, 6] + 1) % lane.model.vocab_size
        with torch.no_grad():
            before, after = model.trunk(tokens).hidden, model.trunk(other).hidden
        torch.testing.assert_close(after[:, :6], before[:, :6], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "mode",
    [
        "learned",
        pytest.param("forced_balanced", marks=pytest.mark.slow),
        pytest.param("replayed", marks=pytest.mark.slow),
    ],
)
def test_a_training_block_compiles_whole(mode: str) -> None:
    from tests.ops.conformance import compiler_warnings_ignored

    torch.compiler.reset()
    block = moe(
        extra_aux_losses=True,
        backend="sorted.torch",
        routing_mode=mode,
        real_slot_ratio=0.5,
        num_expert_groups=2,
        top_k_groups=1,
        shared_expert_gate=True,
    ).train()
    x = inputs(10)
    ids = block.router(x[0]).expert_ids if mode == "replayed" else None
    context = Context(expert_ids=ids)
    expected = block(x, context)
    with compiler_warnings_ignored():
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False)
        found = compiled(x, context)
        found.delta.sum().backward()
    assert torch.equal(found.expert_ids, expected.expert_ids)
    torch.testing.assert_close(found.delta, expected.delta)


@pytest.mark.parametrize(("activation", "columns"), [("gelu", 6), ("relu2", 6), ("swiglu", 12)])
def test_expert_maps_have_the_width_of_their_activation(activation: str, columns: int) -> None:
    assert moe(activation=activation).w_in.shape == (4, 12, columns)
