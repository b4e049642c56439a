import contextlib

import pytest

from lanewise.errors import UsageError
from lanewise.lab.placement import aside, place, replace


class Cores:
    """A machine with these processors; pairs of them may share a core."""

    def __init__(self, usable, *, per_core=1):
        self.usable, self.per_core, self.now = usable, per_core, usable
        self.asked = []

    def usable_cores(self):
        return self.now

    def siblings(self, core):
        return frozenset(
            c for c in self.usable or () if c // self.per_core == core // self.per_core
        )

    def restrict(self, cores):
        self.asked.append(tuple(cores))
        self.now = tuple(cores)

    def read(self, cores, process_ids):
        return "not read"


def put(host, threads=1, *, device="cpu", wanted=True):
    return place(host, num_threads=threads, device_type=device, wanted=wanted)


@pytest.mark.parametrize(
    ("host", "threads", "cores", "lab"),
    [
        (Cores((0, 1)), 1, (1,), (0,)),
        (Cores((4, 6, 9)), 2, (6, 9), (4,)),
        (Cores((0, 1, 2, 3), per_core=2), 2, (1, 3), (0, 2)),
        (Cores((0, 1, 2, 3), per_core=2), 3, (1, 2, 3), (0,)),
    ],
)
def test_arms_get_the_last_cores_and_the_lab_the_rest(host, threads, cores, lab):
    placement = put(host, threads)
    assert (placement.cores, placement.lab_cores) == (cores, lab)
    assert placement.pinned


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        (put(Cores((0,))), "1 threads of 1 usable processors leave none for the lab"),
        (put(Cores((0, 1)), 2), "2 threads of 2 usable processors"),
        (put(Cores((0, 1)), wanted=False), "--no-pin"),
        (put(Cores((0, 1)), device="cuda"), "GPU"),
        (put(Cores(None)), "cannot keep a process"),
        (put(None), "cannot keep a process"),
    ],
)
def test_where_nothing_is_pinned_the_reason_is_said(placement, said):
    assert not placement.pinned
    assert said in placement.reason


def test_the_lab_steps_aside_and_comes_back():
    host = Cores((0, 1))
    with contextlib.suppress(KeyError), aside(host, put(host)):
        assert host.now == (0,)
        raise KeyError
    assert host.now == (0, 1)
    with aside(host, put(host, wanted=False)), aside(None, put(None)):
        assert host.now == (0, 1)


def test_a_pinned_campaign_does_not_go_on_unpinned():
    host = Cores((0,))
    with pytest.raises(UsageError, match="start a new campaign"):
        replace(host, num_threads=1, device_type="cpu", pinned=True)
    assert not replace(host, num_threads=1, device_type="cpu", pinned=False).pinned
