"""Ratios by hand, and flags that neither clamp nor stay silent."""

import pytest

from lanewise.receipts.ceilings import ceiling_name, cite
from lanewise.receipts.store import Store
from lanewise.receipts.utilization import (
    TensorActivity,
    counted_utilization,
    utilization_flags,
    utilizations,
)
from tests.receipts.factory import make_ceilings, sha


def activity(active: float, clock: float | None) -> TensorActivity:
    return TensorActivity(source="nvml_gpm", tensor_active_ratio=active, sm_clock_ratio=clock)


def test_only_what_is_known_is_set_against_what_is_known() -> None:
    found = utilizations(
        10.0,
        {"lane": 3.0, "hardware": 4.0, "six_n_active": None},
        {"peak": None, "measured_matmul": 100.0},
    )
    assert [(u.numerator, u.ceiling, u.ratio) for u in found] == [
        ("lane", "measured_matmul", 0.3),
        ("hardware", "measured_matmul", 0.4),
    ]
    assert found[0].achieved_flops_per_second == 30.0


def test_more_than_everything_is_flagged_with_its_number() -> None:
    found = utilizations(10.0, {"lane": 12.0}, {"peak": 200.0, "measured_matmul": 100.0})
    assert [u.ratio for u in found] == [0.6, 1.2]
    (flag,) = utilization_flags(found, None)
    assert flag.startswith("lane FLOPs are 120.0% of the measured matmul ceiling")


@pytest.mark.parametrize(
    ("active", "clock", "is_flagged"),
    [(0.5, 0.8, False), (0.5, 1.0, False), (0.51, 1.0, True), (0.3, 0.9, True), (0.1, None, False)],
)
def test_counters_more_than_ten_points_away_are_flagged(
    active: float, clock: float | None, is_flagged: bool
) -> None:
    found = utilizations(10.0, {"lane": 99.0, "hardware": 4.0}, {"peak": 100.0})
    lane_flag = utilization_flags(found, None)
    flags = utilization_flags(found, activity(active, clock))
    assert (len(flags) > len(lane_flag)) is is_flagged


def test_counted_utilization_needs_the_clock() -> None:
    assert counted_utilization(activity(0.5, 0.8)) == pytest.approx(0.4)
    assert counted_utilization(activity(0.5, None)) is None


def test_a_ceiling_is_cited_with_its_age() -> None:
    record = make_ceilings()
    cited = cite(record, at="2026-11-25T09:00:00Z")
    assert cited.age_seconds == 2 * 86400
    assert cited.matmul_flops_per_second == record.matmul_flops_per_second
    assert cite(record, at="2026-11-22T09:00:00Z").age_seconds == 0.0


def test_ceilings_belong_to_one_machine_dtype_and_number_of_threads(tmp_path) -> None:
    store = Store(tmp_path)
    record = make_ceilings()
    store.write_ceilings(record)
    store.write_ceilings(make_ceilings({"matmul_flops_per_second": 95e9}))
    found = store.read_ceilings(record.machine, "fp32", 1)
    assert found is not None
    assert found.matmul_flops_per_second == 95e9
    other = record.machine.model_copy(update={"instance_digest": sha("another machine")})
    for machine, dtype, threads in (
        (other, "fp32", 1),
        (record.machine, "bf16", 1),
        (record.machine, "fp32", 2),
        (record.machine, "fp32", None),
    ):
        assert store.read_ceilings(machine, dtype, threads) is None
    assert ceiling_name(record.machine, "bf16", None).endswith("-bf16.json")


@pytest.mark.parametrize("limit", [0.0, -1.0, 1e-300])
@pytest.mark.parametrize("flops", [-1.0, 1e300])
def test_impossible_numbers_of_a_receipt_give_no_ratio(limit: float, flops: float) -> None:
    assert utilizations(1e10, {"lane": flops, "hardware": None}, {"peak": limit}) == ()
