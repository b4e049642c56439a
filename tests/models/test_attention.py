"""Dense MLA against the formula, in both forms, whole and in pieces."""

import pytest
import torch
from torch import Tensor

from lanewise.lane.schema import AttentionSpec
from lanewise.models.attention import Attention
from lanewise.models.layers import Context
from tests.models.micro import block_of, inputs

FORMS = ("expanded", "absorbed")
DOCUMENTS = torch.tensor([[0, 1, 1, 1, 2, 3, 3, 3, 3, 4]])
"""Documents of 1, 3, 1, 4 and 1 tokens."""


def mla_block(form: str, **changes: object) -> Attention:
    block = block_of("A", model__attention__form=form, **changes)
    assert isinstance(block, Attention)
    with torch.no_grad():  # all ones would hide a weight that is not applied
        block.mla.q_norm.weight.copy_(torch.linspace(0.5, 1.5, block.spec.q_lora_rank))
        block.mla.kv_norm.weight.copy_(torch.linspace(1.2, 0.2, block.spec.kv_lora_rank))
    return block


def rotated(x: Tensor, position: int, theta: float) -> Tensor:
    """One vector at one position, pair by pair; angles are rounded to fp32 as the model's table is."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = torch.tensor(position * theta ** (-2 * i / len(x)), dtype=torch.float64)
        cos, sin = (f(angle).float().double() for f in (torch.cos, torch.sin))
        out[i] = x[i] * cos - x[half + i] * sin
        out[half + i] = x[half + i] * cos + x[i] * sin
    return out


def oracle(block: Attention, x: Tensor, documents: Tensor | None = None) -> Tensor:
    """Equations of DeepSeek-V2 §2.1, one text, one head, one query at a time."""
    spec: AttentionSpec = block.spec
    weights = dict(block.mla.named_parameters())
    eps = block.mla.q_norm.eps
    d_n, d_v = spec.qk_nope_head_dim, spec.v_head_dim

    def norm(v: Tensor, name: str) -> Tensor:
        return v / (v.square().mean() + eps).sqrt() * weights[f"{name}.weight"]

    rows = []
    for row, text in enumerate(x):
        queries, keys, values = [], [], []
        for t, token in enumerate(text):
            c_q = norm(weights["q_down.weight"] @ token, "q_norm")
            down = weights["kv_down.weight"] @ token
            c = norm(down[: spec.kv_lora_rank], "kv_norm")
            k_rope = rotated(down[spec.kv_lora_rank :], t, spec.rope_theta)
            q = (weights["q_up.weight"] @ c_q).view(spec.num_heads, -1)
            kv = (weights["kv_up.weight"] @ c).view(spec.num_heads, -1)
            queries.append([torch.cat([h[:d_n], rotated(h[d_n:], t, spec.rope_theta)]) for h in q])
            keys.append([torch.cat([h[:d_n], k_rope]) for h in kv])
            values.append([h[-d_v:] for h in kv])
        out = []
        for t in range(len(text)):
            seen = [
                s
                for s in range(t + 1)
                if documents is None or documents[row, s] == documents[row, t]
            ]
            heads = []
            for h in range(spec.num_heads):
                scores = torch.stack([queries[t][h] @ keys[s][h] for s in seen])
                weight = torch.softmax(scores / (d_n + spec.qk_rope_head_dim) ** 0.5, dim=0)
                heads.append(sum(w * values[s][h] for w, s in zip(weight, seen, strict=True)))
            out.append(weights["out.weight"] @ torch.cat(heads))
        rows.append(torch.stack(out))
    return torch.stack(rows)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_is_the_formula(form: str, documents: Tensor | None) -> None:
    block, x = mla_block(form), inputs(10)
    with torch.no_grad():
        found = block(x, Context(document_ids=documents)).delta
        torch.testing.assert_close(found, oracle(block, x, documents), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("length", [1, 63])
@pytest.mark.parametrize("documents", [False, True])
def test_both_forms_agree_with_their_gradients(length: int, documents: bool) -> None:
    x = inputs(length, batch=2)
    ids = None
    if documents:
        starts = torch.rand(2, length, generator=torch.Generator().manual_seed(3)) < 0.3
        ids = starts.to(torch.int64).cumsum(1)
    results = []
    for form in FORMS:
        block = mla_block(form)
        leaf = x.clone().requires_grad_()
        delta = block(leaf, Context(document_ids=ids)).delta
        delta.square().sum().backward()
        results.append([delta, leaf.grad, *(p.grad for p in block.parameters())])
    for expanded, absorbed in zip(*results, strict=True):
        scale = expanded.abs().max().item()
        torch.testing.assert_close(absorbed, expanded, rtol=0, atol=1e-12 * max(scale, 1.0))


@pytest.mark.parametrize("form", FORMS)
def test_positions_past_the_training_length_go_on(form: str) -> None:
    short, long = (mla_block(form, batch__sequence_length=n) for n in (4, 9))
    long.load_state_dict(short.state_dict())
    x = inputs(9)
    with torch.no_grad():
        (first, state), expected = short.extend(x[:, :3], None), long(x).delta
        second, _ = short.extend(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([first.delta, second.delta], 1), expected)


def test_a_long_prefill_never_holds_all_scores() -> None:
    block = mla_block("expanded", batch__sequence_length=400)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dim() >= 2:
                largest = max(largest, out.numel())
            return out

    x = inputs(400)
    with torch.no_grad(), Watch():
        output, _ = block.extend(x, None)
    assert largest <= 2 * 128 * 400  # heads × query block × keys
    with torch.no_grad():
        torch.testing.assert_close(output.delta, block(x).delta, rtol=1e-10, atol=1e-11)


def test_the_cache_holds_latents_and_rotated_keys_and_is_never_changed() -> None:
    block = mla_block("expanded")
    x = inputs(6)
    with torch.no_grad():
        _, state = block.extend(x[:, :4], None)
        before = state.keys.clone()
        first, _ = block.extend(x[:, 4:], state)
        again, _ = block.extend(x[:, 4:], state)
    assert state.keys.shape == (1, 4, block.spec.kv_lora_rank + block.spec.qk_rope_head_dim)
    assert torch.equal(state.keys, before)
    assert torch.equal(first.delta, again.delta)
