"""A described network as a tree of modules: one for each block, which runs its nodes in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ddsm_ext.graph.count import Layer
from ddsm_ext.graph.node import LAYERS, Node, Scope, Values, make_walk, run
from ddsm_ext.runtime.inputs import embed_node
from ddsm_ext.settings import Refusal


class Block(nn.Module):
    """The layers of a scope and the walk over its nodes.

    Blocks call each other as modules, with the values that `Scope.reads` names, so that each may
    be hooked, wrapped or replaced, as may each layer. What a block computes is said by its words,
    an object with a method for each word of a description.

    Args:
        scope: the nodes.
        make: returns the module of an inner scope or of a layer.
        order: see `NetworkConfig.layer_order`.
        device: of frozen tables and frequencies; None: torch's default.
        generator: source of random frequencies; None means torch's default generator.
    """

    def __init__(
        self,
        scope: Scope,
        make: Callable[[Scope | Layer], nn.Module],
        order: Sequence[str] = (),
        *,
        device: torch.device | str | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self._walk = make_walk(scope.steps, scope.result)
        self._reads = tuple(node.index for node in scope.reads)
        self._result = scope.result.index
        self._frequencies: list[str] = []  # names of buffers
        # Index of a step -> where its modules are below this one.
        self._paths: dict[int, tuple[tuple[str, ...], ...]] = {}
        ranks = {f"{scope.name}.{name}": rank for rank, name in enumerate(order)}
        for step in sorted(scope.steps, key=lambda step: ranks.get(step.name, -1)):
            self._add(scope.name, step, make, device, generator)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Block:
        """What `to`, `cuda`, `half` and the like call: frequencies stay float32 or wider."""
        before = {name: self._buffers[name] for name in self._frequencies}
        super()._apply(fn, recurse)
        for name, frequencies in before.items():
            now = self._buffers[name]
            if frequencies is not None and now is not None and now.dtype.itemsize < 4:
                self._buffers[name] = frequencies.to(now.device)
        return self

    def _add(
        self,
        path: str,
        step: Node | Scope,
        make: Callable[[Scope | Layer], nn.Module],
        device: torch.device | str | None,
        generator: Generator | None,
    ) -> None:
        """Register the modules of a step, whose names say where."""
        if isinstance(step, Scope):
            names: tuple[str, ...] = (step.name,)
        elif step.op in LAYERS or step.op == "sinusoid":
            names = step.layer_names
        else:
            return
        start = len(path) + 1 if path else 0
        self._paths[step.index] = tuple(tuple(name[start:].split(".")) for name in names)
        for name, (first, *rest) in zip(names, self._paths[step.index], strict=True):
            if first not in self._modules and hasattr(self, first):
                raise Refusal(f"{name}: modules have a {first} already; need another name")
            if isinstance(step, Node) and step.op == "sinusoid":
                self.register_buffer(first, frozen_values(step, device, generator))
                if step.fourier:
                    self._frequencies.append(first)
                continue
            made = make(step if isinstance(step, Scope) else Layer(name, step))
            if not rest:
                self.add_module(first, made)
                continue
            if first not in self._modules:
                self.add_module(first, nn.ModuleList())
            self.get_submodule(first).add_module(rest[0], made)

    def module_of(self, step: Node | Scope) -> Any:
        """Return the module of a node without parts, or the block of a scope."""
        path = self._paths[step.index][0]
        module = self._modules[path[0]]
        return module if len(path) == 1 else module._modules[path[1]]  # type: ignore[union-attr]

    def modules_of(self, node: Node) -> list[Any]:
        """Return the module of each part of a node."""
        if not node.parts:
            return [self.module_of(node)]
        return [self._modules[path[0]] for path in self._paths[node.index]]

    def frozen_of(self, node: Node) -> Tensor | None:
        """Return the frozen table or frequencies of a time embedding, or None."""
        return self._buffers[self._paths[node.index][0][0]]

    def _compute(self, inputs: Sequence[Any], words: Any) -> Any:
        value: Values = dict(zip(self._reads, inputs, strict=True))
        run(self._walk, words, value)
        return value[self._result]


def any_weight(block: nn.Module) -> Tensor:
    """Return one of a block's weights."""
    for parameter in block.parameters():
        return parameter
    # DataParallel's replicas and FSDP keep weights as plain attributes.
    weight: Any = next(m.weight for m in block.modules() if hasattr(m, "weight"))
    return weight


def frozen_values(
    node: Node,
    device: torch.device | str | None = None,
    generator: Generator | None = None,
) -> Tensor | None:
    """Return the table [rows, dim] or the frequencies [dim / 2] that a time embedding keeps."""
    if node.fourier:
        frequencies = torch.empty(node.out.c_max // 2, dtype=torch.float32, device=device)
        return frequencies.normal_(std=node.fourier, generator=generator)
    if not node.rows:
        return None
    t = torch.arange(node.rows, device=device)
    return embed_node(node, t, None, torch.float32)


def two_sources(node: Node, value: Values) -> tuple[Tensor, Tensor | None]:
    """Return what a node reads as one or two sources: a norm leaves a concat unjoined."""
    reads = node.reads
    one = value[reads[0].index]
    if len(reads) > 1:
        return one, value[reads[1].index]
    return one if isinstance(one, tuple) else (one, None)


def tokens_of(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] as [N, H * W, C]: a view of channels_last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def pixels_of(tokens: Tensor, like: Tensor) -> Tensor:
    """Return [N, H * W, C] as images of `like`'s height and width, channels_last: a view."""
    n, _, c = tokens.shape
    return tokens.view(n, *like.shape[2:], c).permute(0, 3, 1, 2)
