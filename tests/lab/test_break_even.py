"""n* by hand, for each state of the compile cache."""

from types import SimpleNamespace
from typing import Any

import pytest

from lanewise.dash import pay_back
from lanewise.lab.break_even import break_evens
from lanewise.lab.stance import pays_back
from lanewise.receipts.decision import BreakEven, Estimate


def estimate(ratio: float, low: float, high: float) -> Estimate:
    return Estimate(
        log_ratio=0.0,
        ratio=ratio,
        interval_low=low,
        interval_high=high,
        confidence=0.95,
        num_blocks=3,
        block_sd_log=0.01,
        half_width_log=0.01,
        mde_log=0.01,
        sign_flip_p=None,
    )


def receipt(state: str, seconds: float | None) -> Any:
    return SimpleNamespace(
        compile=SimpleNamespace(
            enabled=state != "unused", cache_state=state, compile_duration_seconds=seconds
        )
    )


def block(control: tuple[str, float | None], treated: tuple[str, float | None]) -> Any:
    receipts = {"A": (receipt(*control),), "B": (receipt(*treated),)}
    return SimpleNamespace(evidence=SimpleNamespace(receipts=receipts))


EAGER = ("unused", 0.0)


def test_cold_and_warm_each_have_their_own_number() -> None:
    blocks = [
        block(EAGER, ("cold", 10.0)),
        block(EAGER, ("warm", 1.0)),
        block(EAGER, ("warm", 3.0)),
    ]
    cold, warm = break_evens(blocks, estimate(0.8, 0.75, 0.9), 0.5)
    # A step of 0.5 s saves 0.1 s: 10 s of compiling are paid after 100 steps, 2 s after 20.
    assert (cold.cache_state, cold.steps, cold.steps_low, cold.steps_high) == ("cold", 100, 80, 200)
    assert (warm.cache_state, warm.steps, warm.treated_seconds) == ("warm", 20, 2.0)
    assert pays_back((cold, warm)) == "pays back after 100 (cold cache) or 20 (warm cache) steps"
    assert pay_back.sentence(cold) == "100 steps [80, 200], compile 0 s → 10.0 s"


def test_a_state_no_block_met_says_so() -> None:
    cold, warm = break_evens([block(EAGER, ("cold", 10.0))], estimate(0.8, 0.7, 1.1), 0.5)
    assert (cold.steps_low, cold.steps_high) == (67, None)
    assert warm.steps is None
    assert warm.reason == "no block that counts compiled from a warm cache"
    assert pays_back((cold, warm)) == "pays back after 100 (cold cache) steps"
    assert pay_back.sentence(cold).startswith("100 steps [67, never]")
    assert pay_back.sentence(warm) == warm.reason


def test_a_mixed_cache_is_a_state_of_its_own() -> None:
    found = break_evens([block(EAGER, ("mixed", 4.0))], estimate(0.8, 0.7, 0.9), 0.5)
    assert [(each.cache_state, each.steps) for each in found] == [
        ("cold", None),
        ("warm", None),
        ("mixed", 40),
    ]


def test_a_feature_that_compiles_less_has_nothing_to_pay() -> None:
    blocks = [block(("warm", 3.0), ("warm", 2.0))]
    _cold, warm = break_evens(blocks, estimate(0.9, 0.8, 0.95), 0.5)
    assert (warm.control_seconds, warm.treated_seconds, warm.steps) == (3.0, 2.0, 0)


def test_a_slower_step_never_pays() -> None:
    blocks = [block(EAGER, ("cold", 2.0))]
    cold, _warm = break_evens(blocks, estimate(1.1, 1.0, 1.2), 0.5)
    assert cold.steps is None
    assert cold.reason == "the treated step is not shorter, so it never pays"
    assert pays_back((cold,)) is None
    assert pay_back.sentence(cold) == cold.reason


@pytest.mark.parametrize(("seconds", "found"), [(None, estimate(0.8, 0.7, 0.9)), (2.0, None)])
def test_what_was_not_measured_has_no_number(seconds: float | None, found: Any) -> None:
    cold, _warm = break_evens([block(EAGER, ("cold", seconds))], found, 0.5)
    assert cold.steps is None
    assert "not measured" in (cold.reason or "")


def test_lanes_that_do_not_compile_have_none() -> None:
    assert break_evens([block(EAGER, EAGER)], estimate(0.8, 0.7, 0.9), 0.5) == ()
    assert break_evens([], None, None) == ()
    assert pays_back(()) is None
    assert BreakEven(cache_state="cold", control_seconds=None, treated_seconds=None).steps is None
