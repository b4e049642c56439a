"""The op set of a model: what is resolved, what is refused, and what is seen to run."""

import pytest
import torch

from lanewise.errors import BackendError
from lanewise.lane.features import FEATURES
from lanewise.ops.dispatch import BackendFallbackWarning, capabilities
from lanewise.ops.opset import OpSet
from lanewise.ops.registry import SPECS, availability, packages
from lanewise.ops.shapes import SHAPES, TEST_SHAPES
from lanewise.ops.spec import Problem

CPU = capabilities("cpu")
NORM = Problem(device_type="cpu", dtype="fp32", dims={"S": 4, "d": 8})
PROBLEMS = {
    op: Problem(device_type="cpu", dtype="fp32", dims=shapes["tiny"])
    for op, shapes in SHAPES.items()
}
OPS = (
    "add_norm",
    "mla_ingress",
    "attention_core",
    "index_topk",
    "sparse_attention",
    "indexer_loss",
    "indexer_warmup_loss",
    "moe_experts",
    "ssm_scan",
    "mimo_scan",
    "ssd_scan",
    "m2rnn_scan",
    "linear_cross_entropy",
    "optimizer_step",
)


def call(ops: OpSet) -> None:
    ops.add_norm(torch.randn(4, 8), torch.randn(4, 8), torch.ones(8), 1e-6)


def test_the_registry_lists_every_op() -> None:
    assert tuple(SPECS) == OPS
    assert all(spec.name == op for op, spec in SPECS.items())
    assert all(callable(getattr(OpSet, op)) for op in OPS)


@pytest.mark.parametrize("op", OPS)
def test_every_table_is_sound(op: str) -> None:
    spec = SPECS[op]
    names = [backend.name for backend in spec.backends]
    assert len(set(names)) == len(names)
    assert len({backend.target for backend in spec.backends}) == len(names), "a row is a copy"
    assert spec.backend(spec.reference) is not None
    assert all(name.count(".") == 1 for name in names if name != "reference")
    assert set(TEST_SHAPES) | {"nam56r-tiny", "nam56r"} <= set(SHAPES[op])
    assert any(name.startswith("anchor_") for name in SHAPES[op])


@pytest.mark.parametrize("op", OPS)
def test_every_backend_that_can_run_here_can_be_imported(op: str) -> None:
    rows = [row for row in availability(CPU) if row.op == op and row.available]
    assert rows
    for row in rows:
        if not row.depends_on_shape:
            OpSet.resolve({op: (row.backend,)}, PROBLEMS, CPU)


def test_every_backend_that_a_feature_names_exists() -> None:
    for feature in FEATURES:
        for setting in feature.settings.values():
            for op, by_device in setting.ops.items():
                for backend in (name for order in by_device.values() for name in order):
                    assert SPECS[op].backend(backend), f"{feature.key}: {op} has no {backend}"


def test_only_ops_with_a_problem_are_resolved() -> None:
    ops = OpSet.resolve({"mla_ingress": ("reshaped.torch",)}, {"add_norm": NORM}, CPU)
    assert set(ops.choices) == {"add_norm"}
    with pytest.raises(BackendError, match=r"op mla_ingress was called and no backend .*add_norm"):
        ops.mla_ingress(*(torch.ones(1) for _ in range(5)))


@pytest.mark.parametrize("backend", [b.name for b in SPECS["add_norm"].backends])
def test_the_backend_asked_for_is_the_one_that_runs(backend: str) -> None:
    ops = OpSet.resolve({"add_norm": (backend,)}, {"add_norm": NORM}, CPU)
    call(ops)
    seen = ops.observed()["add_norm"]
    assert (seen.backends, seen.launches, seen.proof) == ((backend,), 1, "counter")


def test_a_backend_that_never_runs_is_seen() -> None:
    ops = OpSet.resolve({}, {"add_norm": NORM}, CPU)
    assert ops.choices["add_norm"].chosen == "fused.torch"
    assert ops.observed()["add_norm"].backends == ()
    assert ops.observed()["add_norm"].proof == "none"


def test_counters_belong_to_one_set_and_can_be_reset() -> None:
    first = OpSet.resolve({}, {"add_norm": NORM}, CPU)
    second = OpSet.resolve({}, {"add_norm": NORM}, CPU)
    call(first)
    assert second.observed()["add_norm"].launches == 0
    first.reset_counters()
    assert first.observed()["add_norm"].launches == 0


def test_unknown_ops_get_a_suggestion() -> None:
    with pytest.raises(BackendError, match=r"no op is called 'ad_norm'\. Did you mean 'add_norm'"):
        OpSet.resolve({"ad_norm": ()}, {"add_norm": NORM}, CPU)
    with pytest.raises(BackendError, match="no op is called 'ssm'"):
        OpSet.resolve({}, {"ssm": NORM}, CPU)


def test_a_fallback_is_in_the_choice() -> None:
    equal = Problem(
        device_type="cpu", dtype="fp32", dims={"B": 1, "H": 1, "T": 4, "D_qk": 8, "D_v": 8}
    )
    with pytest.warns(BackendFallbackWarning, match=r"nothing to pad"):
        ops = OpSet.resolve(
            {"attention_core": ("padded.torch", "sdpa.torch")}, {"attention_core": equal}, CPU
        )
    choice = ops.choices["attention_core"]
    assert (choice.chosen, choice.fallback) == ("sdpa.torch", True)
    assert choice.rejected[0].backend == "padded.torch"


def test_doctor_rows_cover_every_backend() -> None:
    rows = availability(CPU)
    assert [(row.op, row.backend) for row in rows] == [
        (spec.name, backend.name) for spec in SPECS.values() for backend in spec.backends
    ]
    assert [row.op for row in rows if row.is_reference] == list(SPECS)


def test_packages_are_those_of_the_tables() -> None:
    assert packages() == {
        package
        for spec in SPECS.values()
        for backend in spec.backends
        for package in backend.needs.packages
    }
