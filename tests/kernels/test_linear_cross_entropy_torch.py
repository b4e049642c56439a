import pytest
import torch

from lanewise.kernels import linear_cross_entropy_torch as kernel


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True), (False, False)])
def test_the_custom_op_obeys_its_own_declaration(needs: tuple[bool, bool]) -> None:
    """Schema, fake and tracing, by torch's own checker; the gradient belongs to the Function around it."""
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 4, generator=rng)
    weight = torch.randn(9, 4, generator=rng)
    targets = torch.randint(0, 9, (6,), generator=rng)
    torch.library.opcheck(
        kernel.walk_op,
        (hidden, weight, targets, -100, *needs),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"),
    )


def test_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest product is one chunk of logits, whatever the number of tokens."""
    chunk, vocabulary = kernel.CHUNK_TOKENS["cpu"], 512
    sizes: list[tuple[int, ...]] = []
    real = torch.mm

    def spy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = real(a, b)
        sizes.append(tuple(product.shape))
        return product

    monkeypatch.setattr(torch, "mm", spy)
    hidden = torch.randn(3 * chunk + 1, 8, requires_grad=True)
    weight = torch.randn(vocabulary, 8, requires_grad=True)
    targets = torch.zeros(3 * chunk + 1, dtype=torch.int64)
    kernel.chunked(hidden, weight, targets, -100).backward()
    logits = [size for size in sizes if size[1] == vocabulary]
    assert logits == 3 * [(chunk, vocabulary)] + [(1, vocabulary)]
