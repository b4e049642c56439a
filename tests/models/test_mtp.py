"""MTP against its definition written as loops, and against the label leak of the public implementation."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lanewise.lane import params
from lanewise.lane.flops import components, lane_flops
from lanewise.lane.schema import Lane, MtpSpec
from lanewise.models.layers import IGNORE_INDEX, Context
from lanewise.models.model import HybridModel, Loss
from lanewise.models.mtp import depth_weights
from lanewise.models.problems import lane_problems
from lanewise.ops.opset import OpSet
from tests.models.micro import micro_lane, micro_model, random_batch

ON = {"mtp": True}


def mtp_lane(depth: int = 2, **changes: Any) -> Lane:
    mtp = {"depth": depth, "mlp_hidden_size": 7}
    for key in [k for k in changes if k.startswith("mtp_")]:
        mtp[key.removeprefix("mtp_")] = changes.pop(key)
    return micro_lane(
        **{"model__pattern": "A", "model__num_layers": 1, "model__mtp": mtp, **changes}
    )


def mtp_model(lane: Lane, seed: int = 0) -> HybridModel:
    """Large weights, so that every path can be seen."""
    model = micro_model(lane, switches=ON, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def rows(lane: Lane, num: int = 1, seed: int = 3) -> Tensor:
    """x [num, T + 1]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num, lane.batch.sequence_length + 1)
    return torch.randint(lane.model.vocab_size, shape, generator=generator)


def run(model: HybridModel, x: Tensor, documents: Tensor | None = None) -> Loss:
    return model(x[:, :-1], x[:, 1:], document_ids=documents)


def predictions(model: HybridModel, x: Tensor, documents: Tensor | None = None) -> list[Tensor]:
    """Logits [B, T, W] of every depth, as training computes them."""
    assert model.mtp is not None
    seen: list[Tensor] = []
    hooks = [
        depth.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        for depth in {id(depth): depth for depth in model.mtp.depths}.values()
    ]
    with torch.no_grad():
        run(model, x, documents)
    for hook in hooks:
        hook.remove()
    return [model.head @ h.transpose(1, 2) for h in seen]


def differ(one: Tensor, other: Tensor) -> Tensor:
    """Whether two [1, W, T] differ, per position."""
    return (one - other).abs().amax(dim=1)[0] > 1e-9


def loop_oracle(model: HybridModel, row: Tensor, documents: list[int] | None = None) -> list[float]:
    """Every depth's mean cross-entropy over one row x [T + 1], position by position and token by token."""
    assert model.mtp is not None
    tokens = row[:-1]
    length = len(tokens)
    ids = [0] * length if documents is None else documents
    document_ids = None if documents is None else torch.tensor([documents])
    with torch.no_grad():
        hidden = model.trunk(tokens[None], document_ids=document_ids).hidden[0]
        losses = []
        for j, depth in enumerate(model.mtp.depths, start=1):
            inputs = []
            for t in range(length):
                e = torch.zeros(model.spec.hidden_size, dtype=hidden.dtype)
                if t + j < length and ids[t + j] == ids[t]:
                    e = model.embedding[row[t + j]]
                pair = [normed(hidden[t], depth.hidden_norm), normed(e, depth.embedding_norm)]
                inputs.append(depth.projection.weight @ torch.cat(pair))
            stream = torch.stack(inputs)
            norms = depth.residual.norms
            for sub_layer, norm in zip(depth.sub_layers, norms, strict=False):
                x = F.rms_norm(stream, (stream.shape[-1],), norm, model.spec.norm_eps)
                stream = stream + sub_layer(x[None], Context(document_ids)).delta[0]
            hidden = F.rms_norm(stream, (stream.shape[-1],), norms[2], model.spec.norm_eps)
            counted = []
            for t in range(length):
                if t + j < length and ids[t + j] == ids[t]:
                    target = int(row[t + j + 1])
                    counted.append(-(model.head @ hidden[t]).log_softmax(0)[target].item())
            losses.append(sum(counted) / len(counted) if counted else 0.0)
    return losses


def normed(x: Tensor, norm: torch.nn.Module) -> Tensor:
    return x / (x.square().mean() + norm.eps).sqrt() * norm.weight


@pytest.mark.parametrize("sharing", ["shared", "per_depth"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_losses_are_those_of_the_loops(depth: int, sharing: str) -> None:
    lane = mtp_lane(depth, mtp_sharing=sharing, batch__sequence_length=6)
    model = mtp_model(lane)
    x = rows(lane)
    found = run(model, x)
    expected = loop_oracle(model, x[0])
    names = [f"mtp_{j}" for j in range(1, depth + 1)]
    assert list(found.unweighted) == list(found.parts) == names
    for name, value in zip(names, expected, strict=True):
        assert found.unweighted[name].item() == pytest.approx(value, rel=1e-6)  # rope is fp32


@pytest.mark.parametrize("documents", [[0, 0, 0, 1, 1, 1], [0, 1, 2, 2, 2, 3], [0, 1, 2, 3, 4, 5]])
def test_documents_end_what_a_depth_may_see_and_predict(documents: list[int]) -> None:
    lane = mtp_lane(2, batch__sequence_length=6, data__isolate_documents=True)
    model = mtp_model(lane)
    x = rows(lane)
    found = run(model, x, torch.tensor([documents]))
    expected = loop_oracle(model, x[0], documents)
    assert [v.item() for v in found.unweighted.values()] == pytest.approx(expected, rel=1e-6)


def test_the_mean_is_over_all_rows() -> None:
    lane = mtp_lane(1, batch__sequence_length=5)
    model = mtp_model(lane)
    x = rows(lane, num=3)
    single = [run(model, row[None]).unweighted["mtp_1"] for row in x]
    torch.testing.assert_close(run(model, x).unweighted["mtp_1"], torch.stack(single).mean())


@pytest.mark.parametrize("sharing", ["shared", "per_depth"])
@pytest.mark.parametrize("j", [1, 2, 3])
def test_a_depth_sees_the_token_before_its_target_and_never_the_target(
    j: int, sharing: str
) -> None:
    """The public FastMTP layer embedded x[t+j+1], the label itself, and so reported losses near zero."""
    lane = mtp_lane(3, mtp_sharing=sharing, model__attention__q_lora_rank=6)
    model = mtp_model(lane)
    x = rows(lane)
    before = predictions(model, x)[j - 1]
    length = lane.batch.sequence_length
    for t in range(length - j):
        label, known = x.clone(), x.clone()
        label[0, t + j + 1] = (label[0, t + j + 1] + 1) % 257
        known[0, t + j] = (known[0, t + j] + 1) % 257
        assert not differ(predictions(model, label)[j - 1], before)[: t + 1].any(), t
        assert differ(predictions(model, known)[j - 1], before)[t], t


def test_the_leak_of_the_public_implementation_would_be_seen() -> None:
    """Ids and targets rolled together put the label in the block's input; the check above must notice."""
    lane = mtp_lane(1)
    model = mtp_model(lane)
    assert model.mtp is not None
    depth = model.mtp.depths[0]
    honest = depth.forward

    def leaking(hidden: Tensor, embedded: Tensor, context: Context) -> Tensor:
        return honest(hidden, embedded.roll(-1, dims=1), context)

    depth.forward = leaking  # type: ignore[method-assign]
    x, t = rows(lane), 3
    label = x.clone()
    label[0, t + 2] = (label[0, t + 2] + 1) % 257
    assert differ(predictions(model, label)[0], predictions(model, x)[0])[t]


def test_indices_by_hand() -> None:
    """x = 10 11 12 13 14: what each depth is fed and asked at every position."""
    lane = mtp_lane(2, batch__sequence_length=4)
    model = mtp_model(lane)
    assert model.mtp is not None
    with (
        torch.no_grad()
    ):  # token i is embedded as (i, …, i), so that ids can be read from the embeddings
        model.embedding.copy_(torch.arange(257.0)[:, None].expand(-1, 12))
    fed: list[list[int]] = []
    asked: list[list[int]] = []
    for depth in model.mtp.depths:
        depth.register_forward_hook(
            lambda _m, inputs, _o: fed.append(inputs[1][0, :, 0].int().tolist())
        )
    ops = model.mtp.ops
    model.mtp.ops = Asking(ops, asked)  # type: ignore[assignment]
    run(model, torch.tensor([[10, 11, 12, 13, 14]]))
    no = IGNORE_INDEX
    assert fed == [[11, 12, 13, 0], [12, 13, 0, 0]]
    assert asked == [[12, 13, 14, no], [13, 14, no, no]]
    fed.clear()
    asked.clear()
    run(model, torch.tensor([[10, 11, 12, 13, 14]]), torch.tensor([[5, 5, 9, 9]]))
    assert fed == [[11, 0, 13, 0], [0, 0, 0, 0]]
    assert asked == [[12, no, 14, no], [no, no, no, no]]


class Asking:
    """An op set that writes down the targets it is given."""

    def __init__(self, ops: OpSet, asked: list[list[int]]) -> None:
        self._ops = ops
        self._asked = asked

    def linear_cross_entropy(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int
    ) -> Tensor:
        self._asked.append(targets.tolist())
        return self._ops.linear_cross_entropy(hidden, weight, targets, ignore_index)


def test_ignored_targets_do_not_count() -> None:
    lane = mtp_lane(1, batch__sequence_length=5)
    model = mtp_model(lane)
    x = rows(lane)
    targets = x[:, 1:].clone()
    targets[0, 3:] = IGNORE_INDEX
    short = run(model, x[:, :4]).unweighted["mtp_1"]  # positions 0 and 1 predict x[2] and x[3]
    found = model(x[:, :-1], targets).unweighted["mtp_1"]
    torch.testing.assert_close(found, short, rtol=1e-6, atol=0)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_rows_shorter_than_the_depths_have_no_loss_there(length: int) -> None:
    lane = mtp_lane(3, batch__sequence_length=10)
    model = mtp_model(lane)
    found = run(model, rows(lane)[:, : length + 1])
    values = [value.item() for value in found.unweighted.values()]
    assert [value > 0 for value in values] == [j < length for j in (1, 2, 3)]
    found.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_weights_decay_and_sum_to_the_weight_of_the_objective() -> None:
    weights = depth_weights(MtpSpec(depth=3, mlp_hidden_size=1, loss_weight=1.0, loss_decay=0.6))
    assert [round(weight, 2) for weight in weights] == [0.51, 0.31, 0.18]
    assert sum(
        depth_weights(MtpSpec(depth=5, mlp_hidden_size=1, loss_weight=0.3))
    ) == pytest.approx(0.3)


def test_the_total_holds_every_weighted_depth() -> None:
    lane = mtp_lane(2, mtp_loss_weight=0.5, mtp_loss_decay=0.25)
    found = run(mtp_model(lane), rows(lane))
    one, two = found.unweighted.values()
    torch.testing.assert_close(found.total, found.cross_entropy + 0.4 * one + 0.1 * two)
    torch.testing.assert_close(found.parts["mtp_2"], 0.1 * two)


@pytest.mark.parametrize("sharing", ["shared", "per_depth"])
@pytest.mark.parametrize("attention", ["attention", "grouped_query"])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_parameters_are_those_of_the_formula(sharing: str, attention: str, activation: str) -> None:
    lane = mtp_lane(3, mtp_sharing=sharing, mtp_activation=activation, model__pattern="M")
    if attention == "grouped_query":
        lane = lane.model_copy(update={"model": lane.model.model_copy(update={"attention": None})})
    model = micro_model(lane, switches=ON)
    spec, sizes = lane.model.mtp, params.mtp_attention(lane.model)
    assert spec
    assert sizes
    block = params.mtp_params(spec, sizes, lane.model.hidden_size)
    num_blocks = {"shared": 1, "per_depth": 3}[sharing]
    assert model.mtp is not None
    assert sum(p.numel() for p in model.mtp.parameters()) == num_blocks * block.total
    assert sum(p.numel() for p in model.parameters()) == lane_flops(lane).params_total


def test_sharing_saves_parameters_and_no_flops() -> None:
    shared, own = (mtp_lane(3, mtp_sharing=sharing) for sharing in ("shared", "per_depth"))
    assert lane_flops(shared).training_flops_per_token == lane_flops(own).training_flops_per_token
    assert lane_flops(shared).params_total < lane_flops(own).params_total
    counts = {c.name: c.count for c in components(shared) if c.name.startswith("mtp")}
    assert counts == {"mtp_block": 1, "mtp_block_reused": 2, "mtp_head": 3}


def test_the_trunk_of_a_seed_is_the_same_with_and_without_it() -> None:
    lane = mtp_lane(2)
    on = micro_model(lane, switches=ON)
    off = micro_model(lane)
    batch = random_batch(lane)
    assert torch.equal(on(*batch).cross_entropy, off(*batch).cross_entropy)
    assert off.mtp is None
    assert off(*batch).parts == {}


def test_every_parameter_of_trunk_embedding_head_and_depths_gets_a_gradient() -> None:
    lane = mtp_lane(2)
    model = mtp_model(lane)
    assert model.mtp is not None
    x = rows(lane)
    trunk = model.trunk(x[:, :-1])
    losses = model.mtp(trunk.hidden, trunk.embedded, x[:, 1:], model.head)
    losses[1].backward()  # the deepest alone
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == set()


def test_gradients_match_finite_differences() -> None:
    lane = mtp_lane(2, batch__sequence_length=4, model__vocab_size=257)
    model = mtp_model(lane)
    assert model.mtp is not None
    names = [name for name, _ in model.mtp.named_parameters()]
    generator = torch.Generator().manual_seed(5)
    x = rows(lane)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    def losses(hidden: Tensor, embedded: Tensor, head: Tensor, *values: Tensor) -> Any:
        given = dict(zip(names, values, strict=True))
        arguments = (hidden, embedded, x[:, 1:], head)
        return torch.func.functional_call(model.mtp, given, arguments)

    parameters = tuple(p.detach().clone().requires_grad_() for p in model.mtp.parameters())
    inputs = (draw(1, 4, 12), draw(1, 4, 12), draw(257, 12))
    assert torch.autograd.gradcheck(losses, (*inputs, *parameters), fast_mode=True)


@pytest.mark.parametrize("pieces", [(1,) * 7, (3, 1, 3), (7,)])
def test_a_depth_extends_as_it_computes_whole_rows(pieces: tuple[int, ...]) -> None:
    lane = mtp_lane(1)
    model = mtp_model(lane).eval()
    assert model.mtp is not None
    depth = model.mtp.depths[0]
    generator = torch.Generator().manual_seed(0)
    hidden, embedded = torch.randn(2, 2, 7, 12, generator=generator, dtype=torch.float64)
    state, found, start = None, [], 0
    with torch.no_grad():
        whole = depth(hidden, embedded, Context())
        for piece in pieces:
            part = slice(start, start + piece)
            out, state = depth.extend(hidden[:, part], embedded[:, part], state)
            found.append(out)
            start += piece
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=1e-9, atol=1e-9)


def test_a_lane_without_attention_layers_poses_the_problems_of_its_mtp_block() -> None:
    lane = mtp_lane(1, model__pattern="M")
    assert lane_problems(lane, "cpu", ON).keys() - lane_problems(lane, "cpu").keys() == {
        "mla_ingress",
        "attention_core",
    }
    grouped = lane.model_copy(update={"model": lane.model.model_copy(update={"attention": None})})
    assert "attention_core" in lane_problems(grouped, "cpu", ON)


def test_mixed_precision_keeps_the_stream_wide() -> None:
    lane = mtp_lane(2, precision__compute="bf16")
    model = micro_model(lane, switches=ON)
    exact = micro_model(mtp_lane(2), switches=ON)
    batch = random_batch(lane)
    loss = model(*batch)
    loss.total.backward()
    assert loss.total.item() == pytest.approx(exact(*batch).total.item(), rel=1e-2)
    assert loss.unweighted["mtp_1"].dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_start_knows_nothing() -> None:
    lane = mtp_lane(2)
    loss = micro_model(lane, switches=ON)(*random_batch(lane))
    for value in loss.unweighted.values():
        assert value.item() == pytest.approx(math.log(257), rel=0.02)
