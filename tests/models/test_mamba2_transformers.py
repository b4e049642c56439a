"""The Mamba-2 block against transformers' mixer with the same weights, forward and gradients.

Its eager path scans in fp32 whatever the dtype of the weights, so both run in fp32, and the block in fp64 is the truth: the
block and the mixer may each be off by their rounding.
"""

import logging

import pytest
import torch
from torch import Tensor

from lanewise.models.mamba2 import Mamba2
from tests.models.test_mamba2 import block_of, inputs
from tests.ops.conformance import CANCELLED_SHARE

# Its first use says that the kernels of mamba_ssm are absent, which is the point here.
logging.getLogger("transformers").setLevel(logging.ERROR)
transformers = pytest.importorskip("transformers")

NAMES = {
    "in_proj.weight": "in_proj.weight",
    "conv_weight": "conv1d.weight",
    "conv_bias": "conv1d.bias",
    "dt_bias": "dt_bias",
    "a_log": "A_log",
    "skip": "D",
    "norm_weight": "norm.weight",
    "out.weight": "out_proj.weight",
}
"""Ours → theirs."""
ROUNDING = 64 * torch.finfo(torch.float32).eps
"""Of the largest element: sums over some dozen terms in another order, several deep."""


def randomised(block: Mamba2) -> Mamba2:
    """Vectors away from their start values, so that every one of them matters."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    return block


def mixer_of(block: Mamba2) -> torch.nn.Module:
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    spec = block.spec
    config = transformers.Mamba2Config(
        num_heads=spec.num_heads,
        head_dim=spec.head_dim,
        hidden_size=12,
        expand=spec.num_heads * spec.head_dim // 12,
        state_size=spec.state_size,
        n_groups=spec.num_groups,
        chunk_size=spec.chunk_size,
        conv_kernel=spec.conv_kernel_size,
        layer_norm_epsilon=block.eps,
        num_hidden_layers=1,
        vocab_size=16,
    )
    mixer = Mamba2Mixer(config, 0)
    ours, theirs = dict(block.named_parameters()), dict(mixer.named_parameters())
    assert set(NAMES.values()) == set(theirs)
    with torch.no_grad():
        for name, other in NAMES.items():
            theirs[other].copy_(ours[name].view_as(theirs[other]))
    return mixer


def evaluate(module: torch.nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    x = x.detach().clone().requires_grad_()
    y = module(x)
    y = y if isinstance(y, Tensor) else y.delta
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(y, [x, *parameters], upstream)
    return {"output": y.detach(), **dict(zip(("input", *names), gradients, strict=True))}


@pytest.mark.parametrize("length", [1, 3, 8, 13])
@pytest.mark.parametrize("sizes", [(6, 4, 2, 4), (3, 8, 1, 2), (6, 4, 6, 4)], ids=str)
def test_equals_the_mixer_of_transformers(sizes: tuple[int, int, int, int], length: int) -> None:
    keys = ("num_heads", "head_dim", "num_groups", "conv_kernel_size")
    changes = {f"model__mamba__{key}": size for key, size in zip(keys, sizes, strict=True)}
    block = randomised(block_of(backend="reference", **changes))
    x, upstream = inputs(length), inputs(length, seed=3)
    truth = evaluate(block, x, upstream)
    theirs = evaluate(mixer_of(block), x.float(), upstream.float())
    chunked = block_of(**changes).float()
    chunked.load_state_dict(block.state_dict())
    ours = evaluate(chunked, x.float(), upstream.float())
    largest = max(gradient.abs().max() for name, gradient in truth.items() if name != "output")
    for name, true in truth.items():
        # With one step and one head a group the norm hides the size of dt: its gradient is what is left of larger terms.
        allowed = ROUNDING * max(true.abs().max(), CANCELLED_SHARE * largest * (name != "output"))
        for found in (ours[name], theirs[NAMES.get(name, name)]):
            assert (found.double().view_as(true) - true).abs().max() <= allowed, name
