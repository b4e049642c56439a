"""Activation recompute: chosen sub-layers are computed again in the backward pass, applied from outside.

`full` keeps a sub-layer's input and computes everything else again (Chen et al., arXiv 1604.06174). `selective` also keeps
what is dear to compute and computes the cheap rest again (Korthikanti et al., arXiv 2205.05198): results of matrix
products, of torch's own attention kernels and of lanewise's custom ops (scans, grouped products) are kept. Two kinds of
product are not: batched products that widen their rows, as attention scores do (head dim → keys), and those that only
add up to the sub-layer's output, which its backward pass never reads.

The same operations run on the same numbers, so losses and gradients are the same to the bit where kernels are
deterministic. Launch counters move in the second computation too, since the op is called there; `Block.observe` is
called outside, so expert loads count once.

`selective` sees what passes torch's dispatcher and nothing else: a kernel that reads or writes tensors any other way must be
a custom op, or a product that only it reads is taken for one that nobody needs. It cannot see what autograd saves either: in
layers that save little by themselves (sparse attention with many index heads, frozen layers) it may keep more than `none`.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import (
    TreeSpec,
    tree_flatten,
    tree_leaves,
    tree_map_only,
    tree_unflatten,
)
from torch.utils.checkpoint import checkpoint

from lanewise.errors import BackendError
from lanewise.lane.pattern import TABLE_OF_LETTER
from lanewise.lane.schema import RecomputePolicy, RecomputeSpec
from lanewise.models.layers import Block, BlockOutput, Context, RunBlock
from lanewise.models.model import HybridModel

OWN_OPS = "lanewise"
"""Namespace of the custom ops in `kernels/`: each is one scan or one grouped product."""
PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::_grouped_mm"})
BATCHED_PRODUCTS = frozenset({"aten::bmm", "aten::baddbmm"})
ATTENTION = "aten::_scaled_dot_product_"
UNCOUNTED = frozenset({"aten::detach", "prim::device"})
"""Saving tensors for the backward pass calls these, and how often differs between the two computations."""
PASSING = frozenset({"aten::add.Tensor", "aten::_to_copy", "aten::clone"})
"""Operations whose backward pass does not read what they were given."""
ELSEWHERE = -1
"""Stands for a use that needs the values."""

Call = tuple[Any, int]
"""An operation, and how often it had been called in this sub-layer."""


def apply(model: HybridModel, spec: RecomputeSpec, *, compiled: bool) -> None:
    """Give every layer the policy of its block family.

    Args:
        model: its `run_block` is replaced layer by layer.
        spec: the lane's policies; `mtp` is that of both sub-layers of every MTP depth.
        compiled: whether the blocks are compiled.

    Raises:
        BackendError: a compiled block was to be computed again selectively.
    """
    for index, letter in enumerate(model.letters):
        policy = _policy(spec, TABLE_OF_LETTER[letter], compiled=compiled)
        model.run_block[index] = with_policy(model.run_block[index], policy)
    if model.mtp is not None:
        policy = _policy(spec, "mtp", compiled=compiled)
        for depth in set(model.mtp.depths):
            depth.run_block = with_policy(depth.run_block, policy)


def _policy(spec: RecomputeSpec, family: str, *, compiled: bool) -> RecomputePolicy:
    policy: RecomputePolicy = getattr(spec, family)
    if policy == "selective" and compiled:
        raise BackendError(
            f"recompute.{family} = selective cannot be combined with regional_compile: the operations of a compiled "
            "block cannot be told apart, and the compiler already chooses itself what to compute again. Use full "
            "or none, or --set features.regional_compile=off."
        )
    return policy


def with_policy(run: RunBlock, policy: RecomputePolicy) -> RunBlock:
    """A way to run a sub-layer, with its activations treated by a policy."""
    if policy == "none":
        return run
    return functools.partial(_run_full if policy == "full" else _run_selective, run)


def _run_full(run: RunBlock, block: Block, x: Tensor, context: Context) -> BlockOutput:
    # Blocks draw no random numbers, so there is no generator state to put back.
    output: BlockOutput = checkpoint(
        run, block, x, context, use_reentrant=False, preserve_rng_state=False
    )
    return output


def _run_selective(run: RunBlock, block: Block, x: Tensor, context: Context) -> BlockOutput:
    results = _Results()
    output: BlockOutput = checkpoint(
        run,
        block,
        x,
        context,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (_Keep(results), _Reuse(results)),
    )
    results.forget_output(output.delta)
    return output


class _Results:
    """Results of one sub-layer's forward pass, by operation and by how often it had been called before.

    Torch's own selective checkpointing keeps whatever its policy names until the backward pass. This one lets go of what
    only went into the sub-layer's output: for a Mamba layer that is more than all else that recompute saves.
    """

    def __init__(self) -> None:
        self._kept: dict[Call, tuple[list[Any], TreeSpec]] = {}
        self._calls_at: defaultdict[int, set[Call]] = defaultdict(set)
        self._uses: defaultdict[int, set[int]] = defaultdict(set)

    def keep(self, call: Call, result: Any) -> None:
        """Hold on to the result of a call."""
        leaves, tree = tree_flatten(tree_map_only(Tensor, Tensor.detach, result))
        self._kept[call] = leaves, tree
        for storage in _storages(leaves):
            self._calls_at[storage].add(call)

    def take(self, call: Call) -> tuple[bool, Any]:
        """Whether the result of this call is at hand, and the result; it is handed out once."""
        leaves, tree = self._kept.pop(call, (None, None))
        if leaves is None or tree is None:
            return False, None
        return True, tree_unflatten(leaves, tree)

    def forget_changed(self, op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Let go of what an operation writes into: it can no longer stand for the call that made it.

        Told by storage, because torch's version counters do not see a write through `_unsafe_view`, which every product of
        more than two dims goes through.
        """
        if op._schema.is_mutable:
            given = zip(op._schema.arguments, args, strict=False)
            by_position = [value for argument, value in given if _is_written(argument)]
            by_name = [kwargs.get(a.name) for a in op._schema.arguments if _is_written(a)]
            self._drop(_storages([*by_position, *by_name]))

    def _drop(self, storages: set[int]) -> None:
        """Forget the calls whose results lie in any of these storages."""
        for storage in storages:
            for call in self._calls_at.pop(storage, ()):
                self._kept.pop(
                    call, None
                )  # gone already if it has another storage that was dropped

    def note_use(self, op: Any, arguments: Any, result: Any) -> None:
        """Remember which storages an operation read, and where their values went."""
        read, written = _storages(arguments), _storages(result)
        for storage in read - written:  # a view's storage is not read by making the view
            self._uses[storage] |= (
                written if _name(op) in PASSING and not read & written else {ELSEWHERE}
            )

    def forget_output(self, output: Tensor) -> None:
        """Let go of kept tensors whose values went into the output and nowhere else.

        The second computation is given NaN in their place, which reaches nothing but the output it throws away.
        """
        dead = _storages(output)
        if ELSEWHERE in self._uses[next(iter(dead))]:
            self._drop(dead)  # whoever is given the output may write into it
            return
        grown = True
        while grown:
            reached = {storage for storage, uses in self._uses.items() if uses and uses <= dead}
            grown = not reached <= dead
            dead |= reached
        for leaves, _ in self._kept.values():
            for index, leaf in enumerate(leaves):
                if (
                    isinstance(leaf, Tensor)
                    and leaf.is_floating_point()
                    and _storages(leaf) <= dead
                ):
                    leaves[index] = leaf.new_full((), math.nan).expand(leaf.shape)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _storages(values: Any) -> set[int]:
    return {
        leaf.untyped_storage().data_ptr()
        for leaf in tree_leaves(values)
        if isinstance(leaf, Tensor)
    }


class _CountingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers the calls of each operation, so that both computations name a call alike."""

    def __init__(self, results: _Results) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._results = results
        self._seen: defaultdict[Any, int] = defaultdict(int)

    def _call(self, op: Any) -> Call:
        self._seen[op] += 1
        return op, self._seen[op]


class _Keep(_CountingMode):  # type: ignore[no-untyped-call]
    """Active in the forward pass."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if _name(func) and _name(func) not in UNCOUNTED:
            call = self._call(func)
            self._results.forget_changed(func, args, kwargs or {})
            self._results.note_use(func, (args, kwargs), result)
            if is_kept(func, args, result):
                self._results.keep(call, result)
        return result


class _Reuse(_CountingMode):  # type: ignore[no-untyped-call]
    """Active while the sub-layer is computed again, for every backward pass through a graph that is retained."""

    def __enter__(self) -> _Reuse:
        """Count from the first call again: a backward pass stops computing as soon as it has what it needs."""
        self._seen.clear()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if _name(func) and _name(func) not in UNCOUNTED:
            found, result = self._results.take(self._call(func))
            if found:
                return result
        return func(*args, **(kwargs or {}))


def is_kept(func: Any, args: tuple[Any, ...], result: Any) -> bool:
    """Whether `selective` keeps the result of a call; one that writes into a given tensor (`mm.out`) is never kept.

    Args:
        func: the operation (`torch._ops.OpOverload`).
        args: its arguments.
        result: what it returned.
    """
    name = _name(func)
    if name in BATCHED_PRODUCTS:
        left = args[-2]
        return bool(result.shape[-1] <= left.shape[-1])
    return name in PRODUCTS or name.startswith((f"{OWN_OPS}::", ATTENTION))


def _name(func: Any) -> str:
    """`namespace::operation`, with `.overload` where it is not the default; empty for higher-order operations."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return ""
    return f"{schema.name}.{schema.overload_name}" if schema.overload_name else str(schema.name)
