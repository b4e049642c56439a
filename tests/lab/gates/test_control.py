import dataclasses

import pytest

from lanewise.lab.arms import ArmBuilder
from lanewise.lab.gates.control import planted_delay
from lanewise.lane.load import load_lane
from tests.lab.gates.blocks import block


def delayed(ratio):
    return {"extensions": {"io.lanewise.planted_delay": {"step_time_ratio": ratio, "note": "x"}}}


@pytest.fixture(scope="module")
def base():
    builder = ArmBuilder(
        lane=load_lane("nam56r-tiny"),
        machine_class="cpu-x86_64-2c",
        device_type="cpu",
        design="leave-one-out",
    )
    return builder.build("none")


@pytest.mark.parametrize(
    ("planned", "treated", "control", "text"),
    [
        (None, {}, {}, None),
        (0.05, delayed(1.05), {}, None),
        (None, delayed(1.05), {}, "arm B was to be delayed by 0.00%, its receipt says 5.00%"),
        (0.05, {}, {}, "arm B was to be delayed by 5.00%, its receipt says 0.00%"),
        (0.05, delayed(1.02), {}, "arm B was to be delayed by 5.00%, its receipt says 2.00%"),
        (0.05, delayed(1.05), delayed(1.05), "arm A was to be delayed by 0.00%"),
    ],
)
def test_a_delay_stands_where_it_was_planned_and_nowhere_else(
    base, planned, treated, control, text
):
    arms = dataclasses.replace(base, planted_ratio=planned)
    gate = planted_delay(block(treated, control=control), arms)
    assert gate.ok is (text is None)
    assert all(fault.structural and text in fault.text for fault in gate.faults)
