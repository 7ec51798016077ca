"""`SlimmableNetwork`: a described network that runs at every width its config allows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.count import Layer, columns, layers
from ddsm_ext.graph.graph import Counts
from ddsm_ext.graph.node import Scope
from ddsm_ext.models.block import Block, any_weight
from ddsm_ext.models.dense import DenseNetwork
from ddsm_ext.models.layers import (
    SlicedConv2d,
    SlicedEmbedding,
    SlicedGroupNorm,
    SlicedLayer,
    SlicedLayerNorm,
    SlicedLinear,
    with_device_of,
)
from ddsm_ext.models.structure import Structure, settings_of
from ddsm_ext.models.words import SlimmableWords
from ddsm_ext.ops._call import channels_last
from ddsm_ext.runtime.inputs import check_inputs
from ddsm_ext.runtime.runner import StepRunner, serves
from ddsm_ext.settings import TypeRefusal
from ddsm_ext.width import check_width


class SlimmableBlock(Block):
    """A block that runs at any width; called as `block(*inputs, counts=...)`.

    Args:
        config: the network's.
        scope: the nodes.
        generator: source of the initial weights; None means torch's default generator.
        kind: device and dtype of the parameters; see `SlicedConv2d`.
    """

    def __init__(
        self,
        config: NetworkConfig,
        scope: Scope,
        generator: Generator | None = None,
        **kind: Any,
    ) -> None:
        kind = with_device_of(generator, kind)
        slicing, per_source = config.slicing, config.slicing.concat == "source"

        def make(step: Scope | Layer) -> nn.Module:
            if isinstance(step, Scope):
                return SlimmableBlock(config, step, generator, **kind)
            node = step.node
            if node.op == "embed":
                return SlicedEmbedding(node.rows, node.out.c_max, generator=generator, **kind)
            c_in, *c_skip = (source.out.c_max for source in node.sources)
            if node.op in ("linear", "pointwise"):
                return SlicedLinear(
                    c_in, node.out.c_max, blocks=node.blocks, activation=node.activation,
                    bias=node.bias, gain=node.gain, generator=generator, **kind,
                )  # fmt: skip
            if node.op == "layer_norm":
                return SlicedLayerNorm(node.out.c_max, eps=node.eps, **kind)
            joined = {"c_skip": sum(c_skip), "per_source": per_source, **kind}
            if node.op == "norm":
                fixed, groups = slicing.norm == "fixed_groups", node.groups or slicing.groups
                return SlicedGroupNorm(
                    c_in, groups, **joined, fixed_groups=fixed, silu=node.silu, eps=node.eps
                )
            return SlicedConv2d(
                c_in, node.out.c_max, node.kernel, **joined, stride=node.stride,
                upsample=node.enlarges, ring=node.ring, pad_end=node.pad_end,
                gain=node.gain, generator=generator,
            )  # fmt: skip

        device = kind.get("device")
        super().__init__(scope, make, config.layer_order, device=device, generator=generator)

    def forward(self, *inputs: Any, counts: Counts, accumulate_grad: bool = False) -> Any:
        """Run the nodes.

        Args:
            inputs: values of the nodes in `Scope.reads`: tensors, or tuples of parts.
            counts: active channels of all nodes of the network; see `NetworkConfig.counts`.
            accumulate_grad: backward adds weight gradients to `p.grad` itself.
        """
        return self._compute(inputs, SlimmableWords(self, counts, accumulate_grad))


class SlimmableNetwork(SlimmableBlock):
    """A network whose first channels of every layer form a working network at each width.

    Args:
        config: what describes it.
        generator: source of the initial weights; None means torch's default generator.
        device, dtype: of the parameters; None: the generator's device, and otherwise torch's
            defaults, as in torch's own layers.

    Source: Yang et al. 2024, "Denoising Diffusion Step-aware Models".
    """

    takes_several_labels = True  # see `forward`

    def __init__(
        self,
        config: NetworkConfig,
        *,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(config, NetworkConfig):
            raise TypeRefusal(
                f"SlimmableNetwork: config is {type(config).__name__}; need a NetworkConfig"
            )
        # First, so that no layer takes their names.
        self.config = config
        self.graph = config.graph
        self.slicing = config.slicing
        super().__init__(config, config.graph.scope, generator, device=device, dtype=dtype)
        self._settings = {
            name: settings_of(module)
            for name, module in self.named_modules()
            if isinstance(module, SlicedLayer)
        }
        self._structure: Structure | None = None
        self._runner: StepRunner | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled network makes its own steps."""
        return {**self.__dict__, "_structure": None, "_runner": None}

    def _replicate_for_data_parallel(self) -> SlimmableNetwork:
        replica = super()._replicate_for_data_parallel()
        replica._structure = replica._runner = None
        return replica

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        width: float,
        y: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        context: Tensor | None = None,
        accumulate_grad: bool = False,
    ) -> Tensor:
        """Predict from noisy images at one width.

        In eval mode and without gradients this runs the compiled step (`runtime.StepRunner`), which
        differs in rounding alone, where nothing watches or changes the modules: see
        `runtime.serves` and `structure_problem`.

        Args:
            x: [N, C, H, W] noisy images; fp32, bf16, or fp64 (CPU) or fp16 (CUDA).
            t: [N] timesteps, integer or continuous.
            width: 0 < width <= 1, usable by the config.
            y: [N] int64 labels, of a class-conditional network; or [k N], several of each image in
                blocks of all: what comes before labels then is computed once.
            augment: [N, augment_channels] of how each image was augmented, of a network that is
                told; None: it was not. With it the modules run.
            context: [N, T, channels] tokens, of a network that attends to any.
            accumulate_grad: backward adds weight gradients straight to the prefix of `p.grad`
                and autograd sees none for the parameters.

        Returns:
            [N, C', H, W], or [k N, C', H, W], the prediction in the network's parameterisation.

        Raises:
            TypeError, ValueError: an argument that cannot be used, in one sentence.
        """
        if augment is None and not self.training and serves(self, x):
            known = self._runner is not None and self._runner.is_found_good(x)
            if known or self.structure_problem() is None:
                if self._runner is None:
                    self._runner = StepRunner(self)
                return self._runner(x, t, width, y, context, known_to_serve=True)
        return self.run_modules(
            x, t, width, y, augment, context, accumulate_grad=accumulate_grad
        )

    def run_modules(
        self,
        x: Tensor,
        t: Tensor,
        width: float,
        y: Tensor | None = None,
        augment: Tensor | None = None,
        context: Tensor | None = None,
        *,
        accumulate_grad: bool = False,
    ) -> Tensor:
        """`forward` by the modules alone, never by a compiled step."""
        width = check_width(width)
        # Dynamo warns at a cache; it runs the arithmetic once a graph anyway.
        if torch.compiler.is_compiling():
            counts = self.graph.counts(self.slicing, width)
        else:
            counts = self.config.counts(width)
        inputs = check_inputs(
            "SlimmableNetwork", self.graph, x, t, y, any_weight(self), augment, context,
            several=True,
        )  # fmt: skip
        inputs["x"] = channels_last(inputs["x"])
        values = [inputs[node.name] for node in self.graph.scope.reads]
        return self._compute(values, SlimmableWords(self, counts, accumulate_grad))

    def layer(self, name: str) -> Any:
        """Return the module of a layer by its path."""
        return self.get_submodule(name)

    def structure_problem(self) -> str | None:
        """Return which module below this one is replaced, wrapped or hooked, or None."""
        return self._made().problem()

    def structure_version(self) -> int:
        """Return a number that rises when `structure_problem` finds other modules than before."""
        return self._made().scans

    def first_parameter(self) -> Tensor | None:
        """Return the first parameter, of the device and dtype of all; None: it has none."""
        return self._made().first_parameter()

    def _made(self) -> Structure:
        if self._structure is None:
            drops = any(node.op == "dropout" for node in self.graph.nodes)
            self._structure = Structure(self, _FORWARDS, self._settings, drops)
        return self._structure

    def export_subnet(self, width: float) -> DenseNetwork:
        """Return the network of one width as an ordinary dense module of plain torch layers.

        Args:
            width: 0 < width <= 1, usable by the config.

        Returns:
            A `DenseNetwork` called as (x, t), or (x, t, y), with its own copy of the weights, on
            this network's device and dtype and in its training mode; its outputs equal this
            network's at `width`.

        Raises:
            TypeError, ValueError: the width cannot be used.
        """
        weight = next(self.parameters())
        kind: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        dense = DenseNetwork(self.config, width, **kind).to(**kind)  # a frozen table, too
        dense.load_state_dict(self._subnet_state(self.config.counts(width)))
        return dense.train(self.training)

    def _subnet_state(self, counts: Counts) -> dict[str, Tensor]:
        described = {layer.name: layer for layer in layers(self.graph)}
        state = {}
        for name, tensor in self.state_dict().items():
            path, _, suffix = name.rpartition(".")
            if path not in described:  # a frozen time table
                state[name] = tensor
                continue
            layer = described[path]
            prefixes, c_out = columns(layer.node, counts, self.slicing), counts[layer.node.index]
            if layer.node.op in ("norm", "layer_norm"):
                state[name] = torch.cat([tensor[prefix] for prefix in prefixes])
            elif layer.node.op == "embed":
                state[name] = tensor[:, :c_out]
            elif suffix == "bias":
                state[name] = tensor[..., :c_out].flatten()
            elif layer.node.op == "conv":
                state[name] = torch.cat([tensor[:c_out, prefix] for prefix in prefixes], dim=1)
            else:  # blocks lie below each other in a plain layer
                (prefix,) = prefixes
                state[name] = tensor[..., :c_out, prefix].flatten(0, -2)
        return state


# What a network is made of below itself, as it is when this module is loaded.
_FORWARDS = {
    kind: kind.forward
    for kind in (
        SlimmableBlock,
        SlicedConv2d,
        SlicedEmbedding,
        SlicedGroupNorm,
        SlicedLayerNorm,
        SlicedLinear,
    )
} | {nn.ModuleList: nn.ModuleList.forward}

SlimmableUNet = SlimmableNetwork  # its name while the U-Net was the only family
