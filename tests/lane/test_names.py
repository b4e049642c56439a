import pytest

from lanewise.errors import UsageError
from lanewise.lane.load import load_lane
from lanewise.lane.names import canonical_name


def test_canonical_name_of_the_tiny_lane() -> None:
    name = canonical_name(load_lane("nam56r-tiny"), machine_class="cpu-x86_64-2c", mode="train")
    assert name == "nam56r-AEMEAEMEAEMR-d12-cpu-x86_64-2c×1-single-fp32-train"


def test_canonical_name_of_eight_gpus() -> None:
    lane = load_lane("nam56r-4096", ["precision.residual=fp32"])
    name = canonical_name(lane, machine_class="h200-sxm-141gb", mode="ablate")
    assert name == "nam56r-AEMEAEMEAEMR-d52-h200-sxm-141gb×8-dp8-ep4-bf16+fp32res-ablate"


def test_a_nickname_is_refused() -> None:
    with pytest.raises(UsageError, match="'h200' is a nickname"):
        canonical_name(load_lane("nam56r"), machine_class="h200", mode="train")
