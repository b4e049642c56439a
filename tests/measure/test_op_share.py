"""Shares by hand-written events, then against torch's profiler on operations of known cost."""

import pytest

from lanewise.measure.op_share import BACKWARD, BLOCK, OP, STEP, Event, profiled, shares


def host(
    name: str, start: int, end: int, sequence: int = -1, forward: int = 0, **more: int
) -> Event:
    return Event(name, start, end, more.pop("thread", 1), sequence, forward, **more)


def step(*events: Event, end: int = 1000) -> list[Event]:
    return [host(STEP, 0, end), *events]


def test_forward_is_the_range_and_backward_follows_the_node() -> None:
    found = shares(
        step(
            host(f"{OP}a", 0, 100),
            host("aten::mm", 10, 90, sequence=4),
            host("aten::add", 110, 190, sequence=5),
            host(f"{BACKWARD}: AddBackward0", 300, 350, sequence=5, forward=1),
            host(f"{BACKWARD}: MmBackward0", 400, 600, sequence=4, forward=1),
        )
    )
    assert found.step_seconds == pytest.approx(1000e-9)
    assert found.ops == {"a": pytest.approx(300e-9)}


def test_the_last_operation_with_a_number_made_the_node() -> None:
    # An operation that makes no node peeks at the next number; a range begun after it made the node.
    found = shares(
        step(
            host("aten::view", 0, 5, sequence=7),
            host(f"{OP}a", 10, 50),
            host("aten::mm", 20, 40, sequence=7),
            host(f"{BACKWARD}: MmBackward0", 100, 200, sequence=7, forward=1),
        )
    )
    assert found.ops["a"] == pytest.approx(140e-9)


def test_backward_on_another_thread_finds_its_forward() -> None:
    found = shares(
        step(
            host(f"{OP}a", 0, 10),
            host("aten::mm", 1, 9, sequence=3),
            host(f"{BACKWARD}: MmBackward0", 50, 70, sequence=3, forward=1, thread=2),
        )
    )
    assert found.ops["a"] == pytest.approx(30e-9)


def test_what_a_block_computes_again_is_nobodys_but_its_own_ops() -> None:
    found = shares(
        step(
            host(f"{BLOCK}M", 0, 100),
            host(f"{OP}a", 10, 30),
            host("aten::mm", 11, 29, sequence=1),
            # The node of op a asks for its input: the whole block runs again inside its backward.
            host(f"{BACKWARD}: MmBackward0", 200, 400, sequence=1, forward=1),
            host(f"{BLOCK}M", 210, 310),
            host(f"{OP}a", 220, 240),
        )
    )
    # 20 forward, 200 − 100 of its own backward, 20 again; the rest of the second run is the block's.
    assert found.ops["a"] == pytest.approx(140e-9)
    assert found.blocks["M"] == pytest.approx(300e-9)


def kernel(name: str, start: int, end: int, launched_by: int) -> Event:
    return Event(name, start, end, 7, launched_by=launched_by)


def test_the_device_is_busy_while_any_kernel_runs_and_annotations_are_none() -> None:
    found = shares(
        step(
            host("Optimizer.step#AdamW.step", 0, 900, correlation=20),
            host("aten::mm", 1, 9, correlation=21),
            kernel("gemm", 100, 200, 21),
            kernel("copy", 150, 180, 21),  # inside the other, on a second stream
            kernel("gemm", 190, 260, 21),
            kernel("Memcpy DtoH", 400, 410, 21),
            kernel("Optimizer.step#AdamW.step", 100, 900, 20),
            kernel(STEP, 0, 1000, 0),
        )
    )
    assert found.device_busy == pytest.approx(170e-9)


def test_without_a_device_nothing_is_busy() -> None:
    assert shares(step(host(f"{OP}a", 0, 10))).device_busy is None


def test_on_a_gpu_the_kernels_count_for_the_range_that_launched_them() -> None:
    found = shares(
        step(
            host(f"{OP}a", 0, 10),
            host("aten::mm", 1, 9, sequence=2, correlation=21),
            host("aten::add", 12, 15, correlation=22),
            host(f"{BACKWARD}: MmBackward0", 20, 30, sequence=2, forward=1, thread=2),
            host("aten::mm", 21, 29, thread=2, correlation=23),
            Event("gemm", 500, 600, 7, launched_by=21),
            Event("add", 600, 650, 7, launched_by=22),
            Event("gemm", 650, 850, 7, launched_by=23),
            Event(f"{OP}a", 500, 600, 7, launched_by=1),
            Event("memset", 900, 950, 7, launched_by=0),
        )
    )
    assert found.ops == {"a": pytest.approx(300e-9)}


def test_a_profile_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no range 'lanewise\.step'"):
        shares([host("aten::mm", 0, 10)])


def test_of_a_real_profile_every_range_gets_its_forward_and_some_backward() -> None:
    torch = pytest.importorskip("torch")
    from torch.profiler import record_function

    weights = [torch.randn(64, 64, requires_grad=True) for _ in range(3)]
    x = torch.randn(64, 64)

    def work() -> None:
        h = x
        for name, weight in zip("aba", weights, strict=True):
            with record_function(f"{OP}{name}"):
                h = (h @ weight).relu()
        with torch.no_grad(), record_function(f"{OP}frozen"):
            h.detach() @ weights[0]
        h.sum().backward()

    events = profiled(work, device_type="cpu")
    found = shares(events)
    forward = {
        name: sum(e.end - e.start for e in events if e.name == f"{OP}{name}") / 1e9
        for name in ("a", "b", "frozen")
    }
    assert set(found.ops) == set(forward)
    assert found.ops["a"] > forward["a"]
    assert found.ops["b"] > forward["b"]
    assert found.ops["frozen"] == pytest.approx(forward["frozen"])
    assert sum(found.ops.values()) < found.step_seconds
    nodes = sum(event.name.startswith(f"{BACKWARD}: MmBackward") for event in events)
    assert nodes == 3
