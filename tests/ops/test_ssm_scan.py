from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lanewise.ops.shapes import SHAPES
from lanewise.ops.ssm_scan import SPEC, reference, ssm_scan
from tests.ops import conformance

FAST = [b.name for b in SPEC.backends if b.name != "reference"]
NAMES = ("q", "k", "v", "dt", "a_dt", "trap", "angles", "q_bias", "k_bias", "skip", "z")


def arguments(
    shape: str, chunk_size: int = 4, log_decay: float | None = None, **changes: int
) -> conformance.Arguments:
    """Arguments with decays drawn at random, or all equal to `log_decay`."""
    dims = {**SHAPES["ssm_scan"][shape], **changes}
    rng = conformance.generator()
    batch, length, heads, groups, state = (dims[name] for name in "BTHGN")

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    dt = F.softplus(draw(batch, length, heads) - 1)
    a_dt = -dt * torch.exp(draw(batch, length, heads))
    if log_decay is not None:
        a_dt = torch.full_like(a_dt, log_decay)
    values = (
        draw(batch, length, groups, state),
        draw(batch, length, groups, state),
        draw(batch, length, heads, dims["P"]),
        dt,
        a_dt,
        draw(batch, length, heads),
        draw(batch, length, dims["n"]),
        1 + 0.1 * draw(heads, state),
        1 + 0.1 * draw(heads, state),
        draw(heads),
        draw(batch, length, heads, dims["P"]),
    )
    return (*(value.requires_grad_() for value in values), chunk_size)


def bound(backend: str):
    run, _ = conformance.bind(SPEC, backend)
    return partial(ssm_scan, run)


@pytest.mark.parametrize(("backend", "shape", "dtype"), conformance.cases(SPEC))
def test_conforms_to_the_reference(backend: str, shape: str, dtype: str) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend), reference, arguments(shape), conformance.DTYPES[dtype]
        )


@pytest.mark.parametrize(
    ("length", "chunk_size"),
    [(1, 1), (1, 16), (7, 16), (8, 8), (9, 8), (15, 8), (16, 8), (17, 8), (5, 1), (24, 5)],
)
def test_every_way_to_cut_a_sequence_into_chunks(length: int, chunk_size: int) -> None:
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound("chunked.torch"),
            reference,
            arguments("tiny", chunk_size, T=length),
            torch.float64,
        )


@pytest.mark.parametrize("num_pairs", [0, 3, 4], ids=["no_rotation", "most", "all"])
@pytest.mark.parametrize("backend", FAST)
def test_every_share_of_rotated_coordinates(backend: str, num_pairs: int) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments("tiny", n=num_pairs), torch.float64
    )


@pytest.mark.parametrize("backend", FAST)
def test_gradients_match_finite_differences(backend: str) -> None:
    conformance.assert_gradcheck(bound(backend), arguments("single", 2, T=5, B=1))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("log_decay", [0.0, -1e-6, -50.0, -800.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_extreme_decays(backend: str, log_decay: float, dtype: torch.dtype) -> None:
    args = arguments("tiny", log_decay=log_decay)
    conformance.assert_conforms(bound(backend), reference, args, dtype)


@pytest.mark.parametrize("backend", FAST)
def test_a_step_that_forgets_all_beside_steps_that_forget_nothing(backend: str) -> None:
    args = list(arguments("odd", 16))
    a_dt = torch.zeros_like(args[4])
    a_dt[:, 5::9] = -300.0
    args[4] = a_dt.requires_grad_()
    conformance.assert_conforms(bound(backend), reference, tuple(args), torch.float32)


@pytest.mark.parametrize("backend", FAST)
def test_steps_of_no_length_change_nothing(backend: str) -> None:
    args = list(arguments("tiny"))
    dt, a_dt = args[3].detach().clone(), args[4].detach().clone()
    dt[:, 3:11], a_dt[:, 3:11] = 0, 0
    args[3:5] = dt.requires_grad_(), a_dt.requires_grad_()
    conformance.assert_conforms(bound(backend), reference, tuple(args), torch.float64)


@pytest.mark.parametrize("backend", FAST)
def test_long_sequences_drift_no_further_than_the_reference(backend: str) -> None:
    """1,024 steps in fp32: the error stays within the fp32 reference's own plus 64 epsilons."""
    conformance.assert_conforms(
        bound(backend),
        reference,
        arguments("tiny", 16, B=1, T=1024, H=1, G=1),
        torch.float32,
        margin_eps=64,
    )


@pytest.mark.parametrize("backend", FAST)
def test_accepts_strided_memory(backend: str) -> None:
    conformance.assert_conforms(
        bound(backend), reference, arguments("odd"), torch.float32, make=conformance.strided
    )


@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole(backend: str) -> None:
    args = conformance.cast(arguments("single", 2, T=3), torch.float32)
    conformance.assert_compiles(bound(backend), args)


@pytest.mark.parametrize("backend", [b.name for b in SPEC.backends])
def test_no_output_sees_the_future(backend: str) -> None:
    args = [a.detach() if isinstance(a, Tensor) else a for a in arguments("tiny")]
    y = bound(backend)(*args)
    changed = list(args)
    for i, name in enumerate(NAMES):
        if args[i].dim() > 2:
            changed[i] = args[i].clone()
            changed[i][:, 9:] *= 2 if name in ("dt", "a_dt") else -1
    z = bound(backend)(*changed)
    torch.testing.assert_close(z[:, :9], y[:, :9], rtol=0, atol=1e-12)
    assert (z[:, 9:] - y[:, 9:]).abs().amax(dim=(0, 2, 3)).min() > 1e-3


def test_two_steps_by_hand() -> None:
    """One channel, no rotation, q = k = 1 + bias 0: y_2 = α γ v_1 + β v_1 + γ v_2 + D v_2, all by numbers."""
    one = torch.ones(1, 2, 1, dtype=torch.float64)
    pair = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    pair[..., 0] = 1
    v = torch.tensor([2.0, 5.0], dtype=torch.float64).view(1, 2, 1, 1)
    dt, decay = 0.5 * one, torch.log(torch.tensor(0.25, dtype=torch.float64)) * one
    trap = torch.log(torch.tensor(3.0, dtype=torch.float64)) * one  # λ = 3/4
    zero = torch.zeros(1, 2, dtype=torch.float64)
    z = torch.full_like(v, 40.0)  # silu(40) = 40
    y = reference(
        pair, pair, v, dt, decay, trap, torch.zeros(1, 2, 0, dtype=torch.float64), zero, zero,
        torch.ones(1, dtype=torch.float64), z, 1,
    )  # fmt: skip
    gamma, beta = 0.75 * 0.5, 0.25 * 0.5 * 0.25
    expected = [gamma * 2 + 2, 0.25 * gamma * 2 + beta * 2 + gamma * 5 + 5]
    torch.testing.assert_close(y.flatten(), 40 * torch.tensor(expected, dtype=torch.float64))


def test_what_does_not_fit_is_named() -> None:
    args = dict(zip((*NAMES, "chunk_size"), arguments("tiny"), strict=True))
    run = bound("reference")
    with pytest.raises(ValueError, match=r"skip is \[3\] and must be \[4\]"):
        run(**{**args, "skip": args["skip"][:3]})
    three = {n: args[n][:, :, :3] for n in ("v", "dt", "a_dt", "trap", "z")}
    biases = {n: args[n][:3] for n in ("q_bias", "k_bias", "skip")}
    with pytest.raises(ValueError, match="2 groups do not divide 3 heads"):
        run(**{**args, **three, **biases})
    with pytest.raises(ValueError, match="state size 8 and 5 rotated pairs do not fit"):
        run(**{**args, "angles": torch.zeros(2, 16, 5)})
    with pytest.raises(ValueError, match="chunk_size is 0"):
        run(**{**args, "chunk_size": 0})
