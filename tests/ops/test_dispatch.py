import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lanewise.errors import BackendError, UsageError
from lanewise.ops.dispatch import (
    BackendFallbackWarning,
    capabilities,
    choose,
    installation_rejection,
    load,
    rejection,
)
from lanewise.ops.spec import Backend, Capabilities, Needs, OpSpec, Problem

CPU = Capabilities(
    device_type="cpu", compute_capability=None, packages={"triton": "3.6.0"}, has_cxx_compiler=False
)
H100 = Capabilities(
    device_type="cuda", compute_capability=(9, 0), packages={}, has_cxx_compiler=True
)
PROBLEM = Problem(device_type="cpu", dtype="fp32", dims={"T": 63})


def backend(name: str = "x.torch", **needs: object) -> Backend:
    return Backend(name=name, target="math:sqrt", needs=Needs(**needs))  # type: ignore[arg-type]


def multiple_of_16(dims) -> str | None:
    return None if dims["T"] % 16 == 0 else f"T = {dims['T']} is not a multiple of 16"


CUDA_ONLY = backend("tiled.triton", device_types=frozenset({"cuda"}))
SHAPED = backend("chunked.torch", shape_rule=multiple_of_16)
PLAIN = backend("loop.torch")
SPEC = OpSpec(name="scan", reference="loop.torch", backends=(CUDA_ONLY, SHAPED, PLAIN))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PLAIN, None),
        (CUDA_ONLY, "it runs on cuda, not on cpu"),
        (SHAPED, "T = 63 is not a multiple of 16"),
        (backend(dtypes=frozenset({"bf16", "fp64"})), "it computes in bf16 or fp64, not in fp32"),
        (backend(packages={"tilelang": ">=0.1.8"}), "package 'tilelang' is not installed"),
        (backend(packages={"triton": ">=3.7"}), "package 'triton' is 3.6.0 and must be >=3.7"),
        (backend(packages={"triton": ">=3.6,<3.7"}), None),
        (backend(cxx_compiler=True), "it compiles C++ and no compiler was found"),
        (
            backend(min_capability=(9, 0)),
            "it needs compute capability 9.0, this device has none",
        ),
    ],
)
def test_a_rejection_names_the_rule(row: Backend, reason: str | None) -> None:
    found = rejection(row, PROBLEM, CPU)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(reason)


def test_compute_capability_is_compared_in_order() -> None:
    assert installation_rejection(backend(min_capability=(9, 0)), H100) is None
    reason = installation_rejection(backend(min_capability=(10, 0)), H100)
    assert reason == "it needs compute capability 10.0, this device has 9.0"


def test_a_problem_for_another_device_is_a_defect() -> None:
    with pytest.raises(ValueError, match="the problem is for cpu and the capabilities for cuda"):
        rejection(PLAIN, PROBLEM, H100)


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_every_call_site_must_fit(refused: int) -> None:
    lengths = [32, 16, 64]
    lengths[refused] = 63
    first, *others = ({"T": length} for length in lengths)
    problem = Problem(device_type="cpu", dtype="fp32", dims=first, also=tuple(others))
    assert rejection(SHAPED, problem, CPU) == "T = 63 is not a multiple of 16"
    assert choose(SPEC, (), problem, CPU).chosen == "loop.torch"


def test_call_sites_that_all_fit_are_no_reason_to_refuse() -> None:
    problem = Problem(device_type="cpu", dtype="fp32", dims={"T": 16}, also=({"T": 32},))
    assert rejection(SHAPED, problem, CPU) is None


def test_no_request_walks_the_table_in_silence() -> None:
    choice = choose(SPEC, (), PROBLEM, CPU)
    assert choice.chosen == "loop.torch"
    assert [r.backend for r in choice.rejected] == ["tiled.triton", "chunked.torch"]
    assert not choice.fallback
    assert choice.requested == ()


def test_one_name_must_run() -> None:
    with pytest.raises(BackendError) as caught:
        choose(SPEC, ("chunked.torch",), PROBLEM, CPU)
    assert str(caught.value) == (
        "backend 'chunked.torch' was asked for op scan and cannot run: T = 63 is not a multiple "
        "of 16. Available here: loop.torch. Remove the setting to let the dispatcher choose "
        "loop.torch."
    )


def test_several_names_fall_back_with_one_warning() -> None:
    with pytest.warns(BackendFallbackWarning) as caught:
        choice = choose(SPEC, ("tiled.triton", "chunked.torch", "loop.torch"), PROBLEM, CPU)
    assert choice.chosen == "loop.torch"
    assert choice.fallback
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "op scan falls back to 'loop.torch'" in message
    assert "'tiled.triton' cannot run: it runs on cuda" in message
    assert "'chunked.torch' cannot run: T = 63" in message


def test_several_names_of_which_none_runs() -> None:
    with pytest.raises(BackendError, match=r"no backend of op scan .*'tiled.triton' cannot run"):
        choose(SPEC, ("tiled.triton", "chunked.torch"), PROBLEM, CPU)


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(BackendError, match=r"no backend 'chunked\.torhc'\. Did you mean 'chunked"):
        choose(SPEC, ("chunked.torhc",), PROBLEM, CPU)
    with pytest.raises(BackendError, match=r"'zzz'\. It has tiled\.triton, chunked\.torch, loop"):
        choose(SPEC, ("loop.torch", "zzz"), PROBLEM, CPU)


NAMES = ("a.torch", "b.torch", "c.torch", "d.torch")


@given(
    usable=st.fixed_dictionaries({name: st.booleans() for name in NAMES}),
    requested=st.lists(st.sampled_from(NAMES), unique=True).map(tuple),
)
def test_resolution_law(usable: dict[str, bool], requested: tuple[str, ...]) -> None:
    """The first usable name in the order asked for (or the table's) runs; every one before it has a reason."""
    spec = OpSpec(
        name="law",
        reference="a.torch",
        backends=tuple(
            backend(name, device_types=frozenset({"cpu" if usable[name] else "cuda"}))
            for name in NAMES
        ),
    )
    order = requested or NAMES
    expected = next((name for name in order if usable[name]), None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if expected is None:
            with pytest.raises(BackendError):
                choose(spec, requested, PROBLEM, CPU)
            return
        choice = choose(spec, requested, PROBLEM, CPU)
    before = order[: order.index(expected)]
    assert choice.chosen == expected
    assert choice.requested == requested
    assert tuple(r.backend for r in choice.rejected) == before
    assert all(r.reason for r in choice.rejected)
    assert choice.fallback == bool(requested and before)
    assert len(caught) == int(choice.fallback)


def test_load_imports_the_named_function() -> None:
    assert load("math:sqrt")(9.0) == 3.0


def test_a_missing_module_says_what_to_do() -> None:
    with pytest.raises(BackendError, match="'no_such_module:f' cannot be imported: No module"):
        load("no_such_module:f")


def test_capabilities_hold_installed_packages_only() -> None:
    found = capabilities("cpu", ["packaging", "no-such-distribution"])
    assert found.device_type == "cpu"
    assert found.compute_capability is None
    assert set(found.packages) == {"packaging"}


def test_the_compiler_is_the_one_torch_would_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not capabilities("cpu", []).has_cxx_compiler
    monkeypatch.setenv("CXX", "sh")
    assert capabilities("cpu", []).has_cxx_compiler


def test_a_gpu_that_torch_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"finds no GPU it can use; use --device cpu"):
        capabilities("cuda")
