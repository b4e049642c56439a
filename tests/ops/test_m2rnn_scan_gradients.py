"""`m2rnn_scan` against a backward pass written by hand: where the clip acts, and what documents cut off."""

import math

import pytest
import torch
from torch import Tensor

from lanewise.ops.m2rnn_scan import SPEC, reference
from tests.ops import conformance
from tests.ops.test_m2rnn_scan import arguments, bound
from tests.ops.test_ssd_scan import DOCUMENTS, ids_of, random_ids

ALL = [b.name for b in SPEC.backends]
FAST = [name for name in ALL if name != "reference"]


def by_hand(q, k, v, weight, forget, clip, ids=None) -> dict[str, Tensor]:
    """Outputs and gradients as `conformance.evaluate` names them, from the formulas, one row and head at a time."""
    q, k, v, weight, forget = (x.detach() for x in (q, k, v, weight, forget))
    batch, length, heads, _ = v.shape
    rng = conformance.generator(conformance.UPSTREAM_SEED)
    do = torch.randn(v.shape, generator=rng, dtype=torch.float64).to(torch.bfloat16).double()
    o, dv = torch.zeros_like(v), torch.zeros_like(v)
    dq, dk = torch.zeros_like(q), torch.zeros_like(k)
    dweight, dforget = torch.zeros_like(weight), torch.zeros_like(forget)
    for b in range(batch):
        begins = [
            t > 0 and ids is not None and bool(ids[b, t] != ids[b, t - 1]) for t in range(length)
        ]
        for h in range(heads):
            zero = torch.zeros(k.shape[2], v.shape[3], dtype=v.dtype)
            before, candidates, states = [], [], []
            for t in range(length):
                before.append(zero if t == 0 or begins[t] else states[-1])
                f = forget[b, t, h]
                candidates.append(
                    torch.tanh(before[t] @ weight[h] + torch.outer(k[b, t], v[b, t, h]))
                )
                states.append(f * before[t] + (1 - f) * candidates[t])
                o[b, t, h] = states[t].T @ q[b, t]
            sent_back = zero
            for t in reversed(range(length)):
                complete = torch.outer(q[b, t], do[b, t, h]) + sent_back
                g = complete.clamp(-clip, clip)
                f, c = forget[b, t, h], candidates[t]
                dpre = g * (1 - f) * (1 - c**2)
                dq[b, t] += states[t] @ do[b, t, h]
                dk[b, t] += dpre @ v[b, t, h]
                dv[b, t, h] = dpre.T @ k[b, t]
                dforget[b, t, h] = (g * (before[t] - c)).sum()
                dweight[h] += before[t].T @ dpre
                sent_back = zero if begins[t] else f * g + dpre @ weight[h].T
    grads = (dq, dk, dv, dweight, dforget)
    return {"output 0": o} | {f"gradient {i}": gradient for i, gradient in enumerate(grads)}


@pytest.mark.parametrize("clip", [math.inf, 1.0, 0.1, 0.01])
@pytest.mark.parametrize("documents", ["one", "random"])
@pytest.mark.parametrize("backend", ALL)
def test_equals_the_backward_written_by_hand(backend: str, documents: str, clip: float) -> None:
    ids = random_ids(2, 8, seed=5) if documents == "random" else None
    args = (*arguments("tiny", clip), ids)
    found = conformance.evaluate(bound(backend), args)
    expected = by_hand(*args)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-13, msg=name)


@pytest.mark.parametrize("backend", ALL)
def test_an_exploding_gradient_stays_bounded(backend: str) -> None:
    """A zero state with W = 4·I: what 100 steps send back grows 4-fold a step, past fp32; the clip holds every step."""
    heads, dim = 2, 3

    def key_gradient(clip: float) -> Tensor:
        k = torch.zeros(1, 100, dim, requires_grad=True)
        v = torch.ones(1, 100, heads, dim)
        weight = 4 * torch.eye(dim).repeat(heads, 1, 1)
        o = bound(backend)(torch.ones_like(k), k, v, weight, torch.zeros(1, 100, heads), clip)
        return torch.autograd.grad(o[:, -1].sum(), k)[0]

    assert not torch.isfinite(key_gradient(math.inf)[:, 0]).any()
    # dk_t = Σ over heads and value dims of a gradient within ±0.5, times v = 1; every step sits at the bound.
    assert torch.equal(key_gradient(0.5), torch.full((1, 100, dim), 0.5 * heads * dim))


@pytest.mark.parametrize("clip", [math.inf, 0.3], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("shape", ["tiny", "odd", "single"])
@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("backend", FAST)
def test_documents_conform_to_the_reference(
    backend: str, dtype: str, shape: str, clip: float
) -> None:
    args = arguments(shape, clip)
    ids = random_ids(*args[0].shape[:2], seed=7)
    with conformance.poisoned_memory():
        conformance.assert_conforms(
            bound(backend), reference, (*args, ids), conformance.DTYPES[dtype]
        )


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("backend", ALL)
def test_a_document_in_a_row_equals_the_document_alone(backend: str, documents: str) -> None:
    lengths = DOCUMENTS[documents]
    args = arguments("tiny", 0.3, T=16)
    together = by_hand(*args, ids_of(lengths).expand(2, -1))
    rng = conformance.generator(conformance.UPSTREAM_SEED)
    grad = (
        torch.randn(args[2].shape, generator=rng, dtype=torch.float64).to(torch.bfloat16).double()
    )
    start = 0
    for length in lengths:
        piece = slice(start, start + length)
        q, k, v, forget = (args[i][:, piece].detach().requires_grad_() for i in (0, 1, 2, 4))
        o = bound(backend)(q, k, v, args[3], forget, 0.3)
        torch.testing.assert_close(o, together["output 0"][:, piece], rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(o, [q, k, v, forget], grad[:, piece])
        for i, gradient in zip((0, 1, 2, 4), found, strict=True):
            expected = together[f"gradient {i}"][:, piece]
            torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
        start += length


@pytest.mark.parametrize("backend", FAST)
def test_documents_match_finite_differences(backend: str) -> None:
    args = arguments("single", B=1, T=5)
    conformance.assert_gradcheck(bound(backend), (*args, ids_of([2, 1, 2])))


@pytest.mark.parametrize("backend", ALL)
def test_nothing_at_all_crosses_a_boundary(backend: str) -> None:
    q, k, v, weight, forget, _ = arguments("tiny", T=16)
    ids = ids_of([6, 10]).expand(2, -1)
    o = bound(backend)(q, k, v, weight, forget, 0.3, ids)
    o[:, 6:].sum().backward()
    for tensor in (q, k, v, forget):
        assert not tensor.grad[:, :6].any()
        assert tensor.grad[:, 6:].any()
    other = v.detach().clone()
    other[:, :6] *= -3
    assert torch.equal(o[:, 6:], bound(backend)(q, k, other, weight, forget, 0.3, ids)[:, 6:])


def test_documents_meet_blocks_of_steps_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in (1, 4, 62):
        monkeypatch.setattr("lanewise.kernels.m2rnn_scan_torch.BLOCK_ELEMENTS", steps * 2 * 5 * 3)
        with conformance.poisoned_memory():
            conformance.assert_conforms(
                bound("fused.torch"),
                reference,
                (*arguments("odd", 0.5), random_ids(1, 63, seed=8)),
                torch.float64,
            )


@pytest.mark.parametrize("backend", FAST)
def test_compiles_whole_with_documents(backend: str) -> None:
    args = conformance.cast(arguments("single", 1.0, T=3), torch.float32)
    conformance.assert_compiles(bound(backend), (*args, ids_of([2, 1]).expand(2, -1)))


def test_document_ids_of_another_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r"document_ids is \[1, 8\] and must be \[2, 8\]"):
        bound("reference")(*arguments("tiny"), ids_of([8]))
