"""Sees the shape of every tensor that is made, in the forward and in the backward, inside of custom ops too."""

from __future__ import annotations

from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class ShapeWatch(TorchDispatchMode):
    """Collects the shapes of all results of all operations while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        own = OPDEFS.get(func._schema.name)
        if own is None:
            result = func(*args, **(kwargs or {}))
        else:  # torch runs an op's Python out of sight of a mode, so it is called here
            with self:
                result = own._init_fn(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.shapes.add(tuple(leaf.shape))
        return result

    def quadratic(self, length: int, batch: int) -> list[tuple[int, ...]]:
        """Shapes with two dims of sequence length, or as many numbers as [batch, length, length] has."""
        numels = {shape: torch.Size(shape).numel() for shape in self.shapes}
        return [
            shape
            for shape, numel in numels.items()
            if sum(size >= length for size in shape) > 1 or numel >= batch * length * length
        ]
