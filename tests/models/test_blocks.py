"""Every block against fp64 gradients and against the future."""

import pytest
import torch

from lanewise.models.layers import Context
from tests.models.micro import block_of, inputs
from tests.ops import conformance

LETTERS = "AEMRGD"


@pytest.mark.parametrize("letter", LETTERS)
def test_gradients_of_inputs_and_parameters_match_finite_differences(letter: str) -> None:
    # A wide clip leaves the state gradient of R alone: clipping is not the derivative of anything.
    block = block_of(letter, model__recurrent__state_gradient_clip=1e6)
    names = [name for name, _ in block.named_parameters()]
    x = inputs(3).requires_grad_()

    def delta(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))
        return output.delta

    parameters = tuple(p.detach().clone().requires_grad_() for p in block.parameters())
    # Hooks that clip the state gradient are never called without one, so that probe is left out.
    assert torch.autograd.gradcheck(
        delta, (x, *parameters), fast_mode=True, check_undefined_grad=False
    )


@pytest.mark.parametrize("letter", LETTERS)
def test_every_parameter_gets_a_gradient(letter: str) -> None:
    block = block_of(letter)
    block(inputs(6)).delta.square().sum().backward()
    without = [n for n, p in block.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("changed", [1, 5, 9])
def test_a_token_changes_nothing_before_it(letter: str, changed: int) -> None:
    block = block_of(letter).eval()
    x = inputs(10)
    other = x.clone()
    other[:, changed] += 1.0
    with torch.no_grad():
        before, after = block(x).delta, block(other).delta
    # Only rounding: a batched product may sum in another order, never another set.
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-13, atol=1e-13)
    assert not torch.allclose(after[:, changed], before[:, changed])


@pytest.mark.parametrize("letter", "AMRG")
def test_a_token_reaches_the_tokens_after_it(letter: str) -> None:
    block = block_of(letter).eval()
    x = inputs(10)
    other = x.clone()
    other[:, 2] += 1.0
    with torch.no_grad():
        moved = (block(other).delta - block(x).delta).abs().amax(-1)[0]
    assert (moved[2:] > 1e-9).all()


@pytest.mark.parametrize("letter", LETTERS)
def test_rows_of_a_batch_do_not_meet(letter: str) -> None:
    block = block_of(letter).eval()
    x = torch.cat([inputs(5, seed=1), inputs(5, seed=2)])
    with torch.no_grad():
        together = block(x).delta
        alone = torch.cat([block(x[:1]).delta, block(x[1:]).delta])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("letter", "AG")
def test_attention_sees_only_differences_of_positions(letter: str) -> None:
    block = block_of(letter).eval()
    x = inputs(6)
    rope = block.mla.rope if letter == "A" else block.rope
    with torch.no_grad():
        at_start = block(x).delta
        rope.cos, rope.sin = rope.cos.roll(-3, 0), rope.sin.roll(-3, 0)
        shifted = block(x).delta
    torch.testing.assert_close(shifted, at_start, rtol=1e-5, atol=1e-6)  # the table is fp32


BUILT_TO_EXTEND: tuple[tuple[str, dict[str, object]], ...] = (
    ("A", {}),
    ("A", {"model__attention__form": "absorbed"}),
    ("G", {}),
    ("G", {"model__grouped_query__qk_norm": True}),
    ("G", {"model__grouped_query__num_kv_heads": 1}),
    ("D", {}),
)
"""Letters and settings that must decode like they train and keep documents apart."""
PIECES = ([10], [1] * 10, [3, 1, 4, 2], [9, 1])


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize(("letter", "changes"), BUILT_TO_EXTEND)
def test_extending_in_any_pieces_is_the_whole(
    letter: str, changes: dict[str, object], pieces: list[int]
) -> None:
    block = block_of(letter, **changes).eval()
    x = inputs(10, batch=2)
    state, deltas = None, []
    with torch.no_grad():
        for piece in x.split(pieces, dim=1):
            output, state = block.extend(piece, state)
            deltas.append(output.delta)
        expected = block(x).delta
    torch.testing.assert_close(torch.cat(deltas, 1), expected, rtol=1e-11, atol=1e-12)


DOCUMENTS = torch.tensor([[0, 1, 1, 1, 2, 3, 3, 3, 3, 4], [0, 0, 0, 0, 0, 1, 2, 3, 3, 3]])
"""Documents of one token at the start, inside, in a run and at the end."""


@pytest.mark.parametrize(("letter", "changes"), BUILT_TO_EXTEND)
def test_a_document_in_a_row_is_the_document_alone(letter: str, changes: dict[str, object]) -> None:
    block = block_of(letter, **changes).eval()
    x = inputs(10, batch=2)
    with torch.no_grad():
        together = block(x, Context(document_ids=DOCUMENTS)).delta
        for row, ids in enumerate(DOCUMENTS):
            for document in ids.unique():
                alone = block(x[row : row + 1, ids == document]).delta
                # Positions go on counting, so the rotation differs by fp32 rounding of its table.
                torch.testing.assert_close(
                    together[row, ids == document], alone[0], rtol=1e-5, atol=1e-6
                )


@pytest.mark.parametrize(("letter", "changes"), BUILT_TO_EXTEND)
def test_nothing_crosses_a_document_boundary(letter: str, changes: dict[str, object]) -> None:
    block = block_of(letter, **changes).eval()
    context = Context(document_ids=DOCUMENTS)
    x = inputs(10, batch=2)
    for changed in range(10):
        other = x.clone()
        other[:, changed] += 1.0
        with torch.no_grad():
            moved = (block(other, context).delta != block(x, context).delta).any(-1)
        same = DOCUMENTS[:, changed, None] == DOCUMENTS
        assert not (moved & ~same).any(), changed
        assert moved[:, changed].all()


@pytest.mark.parametrize(
    ("letter", "changes"),
    [("A", {"model__attention__form": "absorbed"}), ("G", {})],
)
def test_trains_as_one_compiled_graph(letter: str, changes: dict[str, object]) -> None:
    block = block_of(letter, **changes)
    context = Context(document_ids=DOCUMENTS)
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False)
    results = []
    for function in (block, compiled):
        x = inputs(10, batch=2).requires_grad_()
        with conformance.compiler_warnings_ignored():
            delta = function(x, context).delta
            delta.square().sum().backward()
        results.append((delta.detach(), x.grad))
    (eager, eager_grad), (found, found_grad) = results
    torch.testing.assert_close(found, eager, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_grad, eager_grad, rtol=1e-11, atol=1e-11)
