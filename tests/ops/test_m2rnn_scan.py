import math
from functools import partial

import pytest
import torch
from torch import Tensor

from lanewise.ops.m2rnn_scan import SPEC, m2rnn_scan, reference
from lanewise.ops.shapes import SHAPES
from tests.ops import conformance

FAST = [b.name for b in SPEC.backends if b.name != "reference"]
INACTIVE = math.inf


def arguments(shape: str, clip: float = INACTIVE, **changes: int) -> conformance.Arguments:
    dims = {**SHAPES["m2rnn_scan"][shape], **changes}
    rng = conformance.generator()
    batch, length, heads, value_dim = (dims[name] for name in "BTHV")

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    return (
        draw(batch, length, dims["K"]).requires_grad_(),
        draw(batch, length, dims["K"]).requires_grad_(),
        draw(batch, length, heads, value_dim).requires_grad_(),
        (draw(heads, value_dim, value_dim) / value_dim**0.5).requires_grad_(),
        torch.sigmoid(draw(batch, length, heads)).requires_grad_(),
        clip,
    )


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(m2rnn_scan, run)


@pytest.mark.parametrize("clip", [INACTIVE, 0.3], ids=["unclipped", "clipped"])
@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC))
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str, clip: float) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend), reference, arguments(shape, clip), conformance.DTYPES[dtype]
        )


@pytest.mark.parametrize("backend", FAST)
def test_gradients_match_finite_differences(backend: str) -> None:
    conformance.assert_gradcheck(bound(backend), arguments("single", T=4))


@pytest.mark.parametrize("backend", FAST)
def test_an_active_clip_changes_the_gradients_and_not_the_output(backend: str) -> None:
    free = conformance.evaluate(bound(backend), arguments("tiny"))
    clipped = conformance.evaluate(bound(backend), arguments("tiny", 0.3))
    assert torch.equal(free["output 0"], clipped["output 0"])
    assert torch.equal(free["gradient 0"], clipped["gradient 0"])  # q does not pass the state
    for name in ("gradient 1", "gradient 2", "gradient 3", "gradient 4"):
        assert (free[name] - clipped[name]).abs().max() > 0.01


@pytest.mark.parametrize("backend", [b.name for b in SPEC.backends])
def test_the_clip_acts_on_the_complete_gradient_of_each_state(backend: str) -> None:
    """Scalars by hand: two steps, W = 0, so h_1 = (1−f) tanh(k v) and h_2 = f h_1 + (1−f) tanh(k v)."""
    one = torch.ones(1, 2, 1, dtype=torch.float64)
    q, k, v = one * 3, one.clone(), one[..., None].clone().requires_grad_()
    forget = one * 0.5
    o = bound(backend)(q, k, v, torch.zeros(1, 1, 1, dtype=torch.float64), forget, 2.0)
    o.sum().backward()
    slope = 0.5 * (1 - math.tanh(1) ** 2)
    # dL/dh_2 = 3 → 2; dL/dh_1 = 3 + 0.5·2 = 4 → 2: both steps see exactly the bound.
    torch.testing.assert_close(v.grad.flatten(), torch.full((2,), 2 * slope, dtype=torch.float64))


@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments("odd"), torch.float32, make=conformance.strided
    )


@pytest.mark.parametrize("backend", FAST)
def test_long_sequences_drift_no_further_than_the_reference(backend: str) -> None:
    """1,024 steps in fp32: the error stays within the fp32 reference's own plus 64 epsilons."""
    conformance.assert_conforms(
        bound(backend),
        reference,
        arguments("tiny", 1.0, B=1, T=1024, H=1),
        torch.float32,
        margin_eps=64,
    )


def test_blocks_of_steps_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    state_elements = 1 * 2 * 5 * 3
    for steps in (1, 4, 62, 63):
        monkeypatch.setattr(
            "lanewise.kernels.m2rnn_scan_torch.BLOCK_ELEMENTS", steps * state_elements
        )
        with conformance.poisoned_memory():
            conformance.assert_conforms(
                bound("fused.torch"), reference, arguments("odd", 0.5), torch.float64
            )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("forget", [0.0, 1.0], ids=["forgets_all", "keeps_all"])
def test_gates_at_their_ends(backend: str, forget: float) -> None:
    q, k, v, weight, f, clip = arguments("tiny")
    f = torch.full_like(f, forget).requires_grad_()
    conformance.assert_conforms(
        bound(backend), reference, (q, k, v, weight, f, clip), torch.float64
    )


@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str) -> None:
    args = conformance.cast(arguments("single", 1.0, T=3), torch.float32)
    conformance.assert_compiles(bound(backend), args)


def test_what_does_not_fit_is_named() -> None:
    q, k, v, weight, forget, _ = arguments("tiny")
    run = bound("reference")
    with pytest.raises(ValueError, match=r"weight is \[3, 4, 3\] and must be \[3, 4, 4\]"):
        run(q, k, v, weight[..., :3], forget, 1.0)
    with pytest.raises(ValueError, match=r"forget is \[2, 7, 3\]"):
        run(q, k, v, weight, forget[:, :7], 1.0)
    with pytest.raises(ValueError, match=r"clip is 0\.0 and must be positive; use inf"):
        run(q, k, v, weight, forget, 0.0)
