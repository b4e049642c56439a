"""Running totals against loops."""

import torch

from lanewise.models.segments import (
    document_boundaries,
    latest_starts,
    running_min,
    running_sum,
)

BOUNDARIES = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 0, 0, 1, 0, 1, 1, 0],
    ],
    dtype=torch.bool,
)
VALUES = torch.tensor(
    [[3, -1, 4, -1, -5, 9, -2, 6], [-1, 2, -3, 4, -5, 6, -7, 8], [5, -9, 2, 7, 7, -3, 1, -4]]
)


def loop(kind: str) -> torch.Tensor:
    result = torch.zeros_like(VALUES)
    for row in range(len(VALUES)):
        segment: list[int] = []
        for t in range(VALUES.shape[1]):
            segment = ([] if BOUNDARIES[row, t] else segment) + [int(VALUES[row, t])]
            result[row, t] = sum(segment) if kind == "sum" else min(segment)
    return result


def test_running_sum_starts_anew_at_every_boundary() -> None:
    torch.testing.assert_close(running_sum(VALUES, latest_starts(BOUNDARIES)), loop("sum"))


def test_running_min_starts_anew_at_every_boundary() -> None:
    torch.testing.assert_close(running_min(VALUES, latest_starts(BOUNDARIES)), loop("min"))


def test_documents_begin_at_the_row_and_where_ids_change() -> None:
    ids = torch.tensor([[7, 7, 2, 2, 2, 7]])
    found = document_boundaries(ids, ids.shape, ids.device)
    assert found.tolist() == [[True, False, True, False, False, True]]
    assert document_boundaries(None, torch.Size([1, 3]), ids.device).tolist() == [
        [True, False, False]
    ]
