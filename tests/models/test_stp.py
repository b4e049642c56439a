import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lanewise.lane.taxes import StpSpec
from lanewise.models.stp import TrajectoryPenalty, draw_spans, trajectory_loss
from tests.models.micro import micro_lane, micro_model, random_batch


def path(length: int = 12, rows: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, 5, generator=generator, dtype=torch.float64)


def penalty(**fields: object) -> TrajectoryPenalty:
    return TrajectoryPenalty(StpSpec(**fields), seed=3)


def spans_of(step: int, length: int, num: int, seed: int = 3) -> list[list[int]]:
    words = np.random.SeedSequence((seed, step, 0x5750))
    return draw_spans(np.random.PCG64(words), num_spans=num, length=length).tolist()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


@pytest.mark.parametrize("documents", [None, [0] * 5 + [1] * 7, [*range(12)]])
def test_the_penalty_is_the_mean_over_spans_rows_and_layers(documents: list[int] | None) -> None:
    paths, step = [path(seed=1), path(seed=2)], 7
    ids = None if documents is None else torch.tensor([documents, documents])
    found = penalty(num_spans=5)(paths, step, ids)
    turns = []
    for h in paths:
        for row in h:
            for s, r, t in spans_of(step, 12, 5):
                if documents is None or documents[s] == documents[t]:
                    turns.append(1 - cosine(row[r] - row[s], row[t] - row[r]))
    expected = sum(turns) / len(turns) if turns else 0.0
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_a_straight_path_costs_nothing_and_turning_back_costs_two() -> None:
    steps = torch.arange(9.0, dtype=torch.float64)[None, :, None]
    straight = steps * torch.randn(1, 1, 4, dtype=torch.float64, generator=torch.Generator())
    every = torch.tensor([[0, 1, 2], [1, 4, 8], [0, 7, 8]])
    assert trajectory_loss([straight], every).item() == pytest.approx(0.0, abs=1e-12)
    there_and_back = straight[:, [0, 1, 0]]
    assert trajectory_loss([there_and_back], torch.tensor([[0, 1, 2]])).item() == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(20))
def test_it_stays_between_zero_and_two(seed: int) -> None:
    assert 0 <= penalty()([path(seed=seed)], step=seed).item() <= 2


@pytest.mark.parametrize("length", [1, 2])
def test_too_short_for_a_span_costs_nothing(length: int) -> None:
    assert penalty()([path(length)], step=0).item() == 0.0


@pytest.mark.parametrize("length", [3, 4, 63])
def test_spans_rise_and_stay_in_the_row(length: int) -> None:
    drawn = draw_spans(np.random.PCG64(0), num_spans=200, length=length)
    s, r, t = drawn.unbind(1)
    assert bool(((s >= 0) & (s < r) & (r < t) & (t < length)).all())
    if length == 4:
        assert len(drawn.unique(dim=0)) == 4  # (0,1,2) (0,1,3) (0,2,3) (1,2,3): all there are


def test_spans_depend_on_seed_and_step_alone() -> None:
    h = path(60)
    one, other = penalty()([h], 5), TrajectoryPenalty(StpSpec(), seed=4)([h], 5)
    assert torch.equal(one, penalty()([h], 5))
    assert one.item() != other.item()
    assert one.item() != penalty()([h], 6).item()


@pytest.mark.parametrize(
    ("window", "active"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"start_step": 2}, [2, 3, 4]),
        ({"start_step": 1, "end_step": 3}, [1, 2]),
        ({"end_step": 1}, [0]),
    ],
)
def test_the_window_begins_at_start_and_ends_before_end(
    window: dict[str, int], active: list[int]
) -> None:
    lane = micro_lane(**{f"model__stp__{key}": value for key, value in window.items()})
    model = micro_model(lane, switches={"stp": True})
    batch = random_batch(lane)
    for step in range(5):
        loss = model(*batch, step=step)
        assert ("stp" in loss.parts) == (step in active)
        if step in active:
            raw = loss.unweighted["stp"]
            torch.testing.assert_close(loss.parts["stp"], 0.05 * raw)
            torch.testing.assert_close(loss.total, loss.cross_entropy + loss.parts["stp"])
        else:
            assert torch.equal(loss.total, loss.cross_entropy)


def test_outside_the_window_no_path_is_kept() -> None:
    lane = micro_lane(model__stp__layers=(0, 2), model__stp__start_step=10)
    model = micro_model(lane, switches={"stp": True})
    trunk, kept = model.trunk, []

    def noting(tokens: Tensor, **keywords: object) -> object:
        kept.append(keywords["path_layers"])
        return trunk(tokens, **keywords)  # type: ignore[arg-type]

    model.trunk = noting  # type: ignore[method-assign,assignment]
    for step in (9, 10):
        model(*random_batch(lane), step=step)
    assert kept == [(), (0, 2)]


def test_chosen_layers_are_their_residual_streams() -> None:
    lane = micro_lane(model__stp__layers=(1, 3))
    model = micro_model(lane, switches={"stp": True}).double()
    tokens, targets = random_batch(lane)
    loss = model(tokens, targets, step=4)
    stream, paths = model.embed(tokens), []
    with torch.no_grad():
        for index, block in enumerate(model.layers):
            x = torch.nn.functional.rms_norm(stream, (12,), model.residual.norms[index], 1e-6)
            stream = stream + block(x).delta
            paths.append(stream)
        stp = TrajectoryPenalty(lane.model.stp, seed=lane.seed)
        expected = stp([paths[1], paths[3]], 4)
    torch.testing.assert_close(loss.unweighted["stp"], expected)


def test_without_layers_it_is_the_final_hidden_state() -> None:
    lane = micro_lane()
    model = micro_model(lane, switches={"stp": True})
    tokens, targets = random_batch(lane)
    with torch.no_grad():
        expected = TrajectoryPenalty(lane.model.stp, seed=lane.seed)(
            [model.trunk(tokens).hidden], 0
        )
    torch.testing.assert_close(model(tokens, targets).unweighted["stp"], expected)


def test_gradients_match_finite_differences() -> None:
    spans = torch.tensor([[0, 1, 3], [1, 2, 4]])
    documents = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    h = path(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: trajectory_loss([x], spans), (h,))
    assert torch.autograd.gradcheck(lambda x: trajectory_loss([x], spans, documents), (h,))


def test_states_that_nearly_coincide_pull_with_a_bounded_force() -> None:
    still = torch.ones(1, 6, 4, dtype=torch.float64) + 1e-9 * path(6, rows=1)[..., :4]
    still.requires_grad_()
    loss = trajectory_loss((still,), torch.tensor([[0, 1, 2], [1, 3, 5]]))
    (gradient,) = torch.autograd.grad(loss, still)
    assert loss.isfinite()
    assert gradient.abs().max() < 1e-2  # 1/1e-9 without a least step
