import pytest
import torch
from torch.nn import functional as F

from lanewise.models.layers import init_dt_bias, is_decayed, must_stay_fp32
from lanewise.models.mamba import decay_rate
from tests.models.micro import micro_lane, micro_model


def test_dt_bias_starts_log_uniform_between_its_bounds() -> None:
    bias = torch.empty(4000)
    init_dt_bias(
        bias, dt_min=1e-3, dt_max=1e-1, dt_floor=1e-4, generator=torch.Generator().manual_seed(0)
    )
    dt = F.softplus(bias.double())
    assert dt.min() >= 1e-3 * 0.999
    assert dt.max() <= 1e-1 * 1.001
    # Log-uniform: the median is the geometric mean of the bounds.
    assert dt.median() == pytest.approx(1e-2, rel=0.1)


def test_dt_floor_raises_small_steps() -> None:
    bias = torch.empty(100)
    init_dt_bias(
        bias, dt_min=1e-5, dt_max=1e-4, dt_floor=5e-5, generator=torch.Generator().manual_seed(0)
    )
    assert F.softplus(bias.double()).min() == pytest.approx(5e-5, rel=1e-2)


@pytest.mark.parametrize("u", [-3.0, -0.5, 0.0, 0.5, 1.0, 4.0])
def test_reciprocal_decay_is_the_piecewise_map(u: float) -> None:
    dd_a = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    rate = decay_rate(dd_a, decay_map="reciprocal", a_floor=1e-4)
    rate.backward()
    assert rate.item() == pytest.approx(-(1 + u) if u >= 0 else -1 / (1 - u))
    assert dd_a.grad is not None
    # The two branches meet with slope 1.
    assert dd_a.grad.item() == pytest.approx(-1 if u >= 0 else -1 / (1 - u) ** 2)


@pytest.mark.parametrize("decay_map", ["reciprocal", "softplus"])
def test_decay_never_stops(decay_map: str) -> None:
    rate = decay_rate(torch.tensor([-1e6, -40.0, 0.0]), decay_map=decay_map, a_floor=1e-2)
    assert (rate <= -1e-2).all()


def test_softplus_decay_is_minus_softplus() -> None:
    dd_a = torch.linspace(-2, 2, 5)
    torch.testing.assert_close(
        decay_rate(dd_a, decay_map="softplus", a_floor=1e-4), -F.softplus(dd_a)
    )


def test_vectors_are_neither_decayed_nor_cast_and_matrices_are_decayed() -> None:
    model = micro_model(micro_lane(model__mamba__mimo_rank=2, model__mamba__output_norm=True))
    vectors = ("norm", "bias", "skip", "a_log", "psi")
    for name, parameter in model.named_parameters():
        is_vector = any(word in name for word in vectors)
        assert is_decayed(parameter) != is_vector, name
        assert must_stay_fp32(parameter) == (is_vector or "router" in name), name
