from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lanewise.errors import BackendError
from lanewise.lane.load import load_lane
from lanewise.lane.pattern import TABLE_OF_LETTER
from lanewise.lane.schema import Lane, RecomputePolicy, RecomputeSpec
from lanewise.measure.memory import measure_cpu_step
from lanewise.models.layers import NO_CONTEXT, Block, BlockOutput, Context, run_plainly
from lanewise.models.model import HybridModel
from lanewise.models.problems import lane_problems
from lanewise.ops.dispatch import capabilities
from lanewise.ops.opset import OpSet
from lanewise.parallel import recompute
from tests.models.micro import micro_lane, micro_model, random_batch

POLICIES = ("full", "selective")
FAMILIES = [TABLE_OF_LETTER[letter] for letter in "AEMR"]


def everywhere(lane: Lane, policy: str) -> RecomputeSpec:
    """The policy for every block family of the lane's pattern."""
    return RecomputeSpec(**{TABLE_OF_LETTER[letter]: policy for letter in lane.model.pattern})


def default_ops(lane: Lane) -> OpSet:
    """What training uses: the custom ops and explicit backward passes."""
    return OpSet.resolve({}, lane_problems(lane, "cpu"), capabilities("cpu"))


def trained_once(
    lane: Lane, spec: RecomputeSpec, *, ops: OpSet | None = None
) -> tuple[HybridModel, torch.Tensor]:
    model = micro_model(lane, ops=ops, switches={"extra_aux_losses": True}).train()
    recompute.apply(model, spec, compiled=False)
    loss = model(*random_batch(lane)).total
    loss.backward()
    return model, loss.detach()


@pytest.mark.parametrize("reference", [True, False], ids=["reference ops", "default ops"])
@pytest.mark.parametrize("policy", POLICIES)
def test_loss_and_gradients_are_the_same_to_the_bit(policy: str, reference: bool) -> None:
    lane = micro_lane()

    def once(spec: RecomputeSpec) -> tuple[HybridModel, torch.Tensor]:
        return trained_once(lane, spec, ops=None if reference else default_ops(lane))

    plain, loss = once(RecomputeSpec())
    again, loss_again = once(everywhere(lane, policy))
    assert torch.equal(loss, loss_again)
    for (name, p), q in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert p.grad is not None, name
        assert q.grad is not None, name
        assert torch.equal(p.grad, q.grad), name


@pytest.mark.parametrize("sharing", ["shared", "per_depth"])
@pytest.mark.parametrize("policy", POLICIES)
def test_mtp_blocks_follow_their_own_policy(policy: RecomputePolicy, sharing: str) -> None:
    mtp = {"depth": 2, "mlp_hidden_size": 7, "sharing": sharing}
    lane = micro_lane(model__pattern="M", model__num_layers=1, model__mtp=mtp)
    calls = []

    def once(policy: RecomputePolicy) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        model = micro_model(lane, switches={"mtp": True}).train()
        recompute.apply(model, RecomputeSpec(mtp=policy), compiled=False)
        assert model.mtp is not None
        for sub_layer in model.mtp.sub_layers:
            sub_layer.register_forward_pre_hook(lambda *_: calls.append(policy))
        loss = model(*random_batch(lane)).total
        loss.backward()
        return loss, [p.grad for p in model.parameters()]

    (loss, grads), (loss_again, grads_again) = once("none"), once(policy)
    assert torch.equal(loss, loss_again)
    assert all(torch.equal(g, h) for g, h in zip(grads, grads_again, strict=True))
    assert calls.count("none") == 4  # attention and MLP of two depths
    assert calls.count(policy) == 8


@pytest.mark.parametrize("policy", POLICIES)
def test_expert_loads_count_once(policy: str) -> None:
    lane = micro_lane()
    model, _ = trained_once(lane, everywhere(lane, policy))
    tokens = lane.batch.sequence_length * lane.batch.micro_batch_size
    assert lane.model.moe is not None
    assert model.blocks[1].router.load.sum().item() == tokens * lane.model.moe.top_k


def one_family_lane(family: str) -> Lane:
    """The tiny lane made of one block family, deep enough that activations of layers rule."""
    letter = {table: letter for letter, table in TABLE_OF_LETTER.items()}[family]
    lane = load_lane("nam56r-tiny", [f"model.pattern={letter}", "model.num_layers=4"])
    return lane.model_copy(update={"batch": lane.batch.model_copy(update={"micro_batch_size": 2})})


def bytes_at_the_end_of_the_forward(lane: Lane, policy: str) -> int:
    """Most tensor bytes that a forward pass has allocated at any moment, its graph kept."""
    model = micro_model(lane, ops=default_ops(lane)).train()
    recompute.apply(model, everywhere(lane, policy), compiled=False)
    tokens, targets = random_batch(lane)
    kept: list[torch.Tensor] = []
    return measure_cpu_step(lambda: kept.append(model(tokens, targets).total), ()).added_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_take_less_memory(family: str) -> None:
    lane = one_family_lane(family)
    none, selective, full = (
        bytes_at_the_end_of_the_forward(lane, policy) for policy in ("none", "selective", "full")
    )
    assert full < selective < none, (family, full, selective, none)


class Products(TorchDispatchMode):
    """Counts the matrix products that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


class Widening(Block):
    """x → product → sine → product → sine → output product, all plain torch."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter(torch.randn(4, 8, generator=rng))
        self.second = torch.nn.Parameter(torch.randn(8, 4, generator=rng))
        self.forwards = 0

    def forward(self, x: torch.Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        self.forwards += 1
        hidden = torch.sin(x.flatten(0, 1) @ self.first)
        return BlockOutput((hidden @ self.second).view_as(x))


@pytest.mark.parametrize(("policy", "products"), [("none", 2), ("selective", 2), ("full", 3)])
def test_products_run_again_only_where_full_says_so(policy: str, products: int) -> None:
    """The output product is never run again: the backward pass does not need its result."""
    block, x = Widening(), torch.ones(1, 3, 4)
    run = recompute.with_policy(run_plainly, policy)  # type: ignore[arg-type]
    with Products() as ran:
        run(block, x, NO_CONTEXT).delta.square().sum().backward()
    assert block.forwards == (1 if policy == "none" else 2)
    assert (
        ran.count == products + 3
    )  # backward: to the second weight, to its input, to the first weight


class UsesItsOutput(Widening):
    """What is added to the output is also read on the way."""

    def forward(self, x: torch.Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        first = x.flatten(0, 1) @ self.first @ self.second
        second = torch.sin(first) @ self.first @ self.second
        return BlockOutput((first + second).view_as(x))


class ReadsItsDelta(Widening):
    """The output itself is read by an auxiliary loss."""

    def forward(self, x: torch.Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        delta = (x.flatten(0, 1) @ self.first @ self.second).view_as(x)
        return BlockOutput(delta, {"size": delta.square().sum()})


class WritesInPlace(Widening):
    """A product is changed after it was kept."""

    def forward(self, x: torch.Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        hidden = (x.flatten(0, 1) @ self.first).mul_(2).sin()
        return BlockOutput((hidden @ self.second).view_as(x))


class WritesThroughAView(Widening):
    """The product of three dims is returned by `_unsafe_view`, whose version counter is its own."""

    def forward(self, x: torch.Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        hidden = (x @ self.first).mul_(2).sin()
        return BlockOutput(hidden @ self.second)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", [UsesItsOutput, ReadsItsDelta, WritesInPlace, WritesThroughAView])
def test_blocks_that_use_what_they_made(kind: type[Widening], policy: str) -> None:
    gradients = []
    for each in ("none", policy):
        block = kind()
        run = recompute.with_policy(run_plainly, each)  # type: ignore[arg-type]
        output = run(block, torch.ones(1, 3, 4), NO_CONTEXT)
        (output.delta.square().sum() + sum(output.aux_losses.values())).backward()
        gradients.append([p.grad for p in block.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None
        assert again is not None
        assert torch.equal(plain, again)


def test_a_walk_over_blocks_of_queries_is_kept_as_one_result() -> None:
    """Neither what it multiplies on the way is kept, nor does it run again."""
    walks = ("index_topk_blocked", "indexer_loss_blocked", "sparse_attention_forward")
    lane = micro_lane(
        model__pattern="A",
        model__num_layers=1,
        model__attention__sparse={**SPARSE, "layer_ranks": [0]},
    )
    block = micro_model(lane, ops=default_ops(lane)).blocks[0]
    x = torch.randn(1, 10, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with Calls() as calls:
        output = recompute.with_policy(run_plainly, "selective")(block, x, NO_CONTEXT)
        during_forward = calls.count["aten::bmm"]
        (output.delta.sum() + output.aux_losses["indexer"]).backward()
    assert [calls.count[f"lanewise::{walk}"] for walk in walks] == [1, 1, 1]
    assert during_forward == 2  # W_uk into the queries, W_uv out of the values


class Calls(TorchDispatchMode):
    """Counts calls by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


class TwoOfAShape(Widening):
    """Two products that only their order tells apart."""

    def forward(self, x: torch.Tensor, context: Context = NO_CONTEXT) -> BlockOutput:
        square = self.first @ self.second
        hidden = torch.sin(torch.sin(x.flatten(0, 1) @ square) @ square.T)
        return BlockOutput(hidden.view_as(x))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", [Widening, TwoOfAShape])
def test_a_retained_graph_gives_the_same_gradients_again(kind: type[Widening], policy: str) -> None:
    block = kind()
    parameters = [block.first, block.second]
    plain = torch.autograd.grad(block(torch.ones(1, 3, 4)).delta.sum(), parameters)
    run = recompute.with_policy(run_plainly, policy)  # type: ignore[arg-type]
    total = run(block, torch.ones(1, 3, 4), NO_CONTEXT).delta.sum()
    for _ in range(3):
        again = torch.autograd.grad(total, parameters, retain_graph=True)
        assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


@pytest.mark.parametrize(
    ("op", "shapes", "kept"),
    [
        (torch.ops.aten.mm.default, [(4, 3), (3, 50)], True),
        (torch.ops.aten.bmm.default, [(2, 9, 3), (2, 3, 9)], False),  # scores: 3 → 9
        (torch.ops.aten.bmm.default, [(2, 9, 9), (2, 9, 3)], True),  # scores × values: 9 → 3
        (torch.ops.aten.mul.Tensor, [(4, 3), (4, 3)], False),
    ],
)
def test_what_selective_keeps(op: Any, shapes: list[tuple[int, ...]], kept: bool) -> None:
    arguments = tuple(torch.ones(shape) for shape in shapes)
    assert recompute.is_kept(op, arguments, op(*arguments)) is kept


def test_selective_and_compiled_blocks_exclude_each_other() -> None:
    with pytest.raises(BackendError, match=r"recompute\.moe = selective cannot be combined"):
        recompute.apply(micro_model(), RecomputeSpec(moe="selective"), compiled=True)
    recompute.apply(micro_model(), RecomputeSpec(moe="full"), compiled=True)


def test_decoding_and_evaluation_are_left_alone() -> None:
    lane = micro_lane()
    model = micro_model(lane)
    recompute.apply(model, everywhere(lane, "full"), compiled=False)
    tokens, targets = random_batch(lane)
    with torch.no_grad():
        assert torch.isfinite(model(tokens, targets).total)


MTP = {"depth": 2, "mlp_hidden_size": 10, "sharing": "shared"}
SPARSE = {
    "top_k": 4,
    "index_num_heads": 2,
    "index_head_dim": 4,
    "layer_ranks": [0, 1],
    "full_ranks": [0],
}


def gradients_with(lane: Lane, spec: RecomputeSpec, switches: dict[str, bool]) -> dict[str, Any]:
    """Loss and gradients of a micro-batch of several documents."""
    model = micro_model(lane, ops=default_ops(lane), switches=switches).train()
    recompute.apply(model, spec, compiled=False)
    documents = torch.tensor([[0] * 4 + [1] + [2] * 5, [3] * 10])
    loss = model(*random_batch(lane), document_ids=documents)
    loss.total.backward()
    return {
        "loss": loss.total.detach(),
        **{name: p.grad for name, p in model.named_parameters() if p.grad is not None},
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_index_cache_documents_and_mtp_are_the_same_to_the_bit(policy: str) -> None:
    lane = micro_lane(
        model__pattern="AEMRADGA",
        model__num_layers=8,
        model__attention__sparse=SPARSE,
        model__mtp=MTP,
    )
    switches = {"mtp": True, "extra_aux_losses": True}
    every = dict.fromkeys(RecomputeSpec.model_fields, policy)
    plain = gradients_with(lane, RecomputeSpec(), switches)
    again = gradients_with(lane, RecomputeSpec(**every), switches)
    assert plain.keys() == again.keys()
    assert any("mtp" in name for name in plain)
    assert any("indexer" in name for name in plain)
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name


@pytest.mark.parametrize("switch", ["engram", "hyper_connections", "depth_routing", "stp"])
@pytest.mark.parametrize("policy", POLICIES)
def test_taxes_are_the_same_to_the_bit(switch: str, policy: str) -> None:
    lane = micro_lane(model__pattern="ADEM", model__depth_routing={"num_first_layers_kept": 0})
    plain = gradients_with(lane, RecomputeSpec(), {switch: True})
    again = gradients_with(lane, everywhere(lane, policy), {switch: True})
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name


def test_a_shared_mtp_block_is_wrapped_once() -> None:
    lane = micro_lane(model__mtp=MTP)
    model = micro_model(lane, switches={"mtp": True})
    recompute.apply(model, RecomputeSpec(mtp="full"), compiled=False)
    assert model.mtp is not None
    (depth,) = set(model.mtp.depths)
    assert depth.run_block.args == (run_plainly,)  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match=r"recompute\.mtp = selective"):
        recompute.apply(model, RecomputeSpec(mtp="selective"), compiled=True)
