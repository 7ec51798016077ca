"""The network of whole-step benchmarks, and what is compared: slicing, dense, compiled, ours."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsm_ext.bench.conditions import Setting, config_at
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.count import Layer, columns, layers
from ddsm_ext.graph.graph import Counts
from ddsm_ext.graph.node import Node, Values, run
from ddsm_ext.models.dense import DenseNetwork, PlainWords
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.runtime.inputs import embed_node, named_inputs
from ddsm_ext.settings import Refusal

STEP_CANDIDATES = ("slicing", "dense", "dense_cl", "compiled", "ours", "ours_module")
DEFAULT_CANDIDATES = ("slicing", "dense_cl", "ours")  # compiling takes a minute a width
Call = Callable[[], Tensor]
_FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
Function = Callable[[Tensor], Tensor]
_COMPILE_S = 30.0  # less than this is not tried for the first width


def random_network(config: NetworkConfig) -> SlimmableNetwork:
    """Return a network whose every layer matters to the output.

    The usual initial weights nearly silence the last layer of every branch, so that a wrong branch
    would pass a comparison.
    """
    generator = torch.Generator().manual_seed(0)
    net = SlimmableNetwork(config, generator=generator, dtype=torch.float32)
    tables = {f"{row.name}.weight" for row in layers(config.graph) if row.node.op == "embed"}
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1 and not name.endswith(".bias"):
                inputs = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()
                fan_in = 1 if name in tables else inputs
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
            else:
                parameter.add_(torch.empty_like(parameter).normal_(generator=generator), alpha=0.1)
    return net.eval()


def random_inputs(
    config: NetworkConfig, batch: int, dtype: torch.dtype, *, device: str = "cpu"
) -> dict[str, Tensor]:
    """Return what the network is called with, by name.

    x: images [N, C, H, W]; t: timesteps [N], int64, or for random frequencies float32, as such
    networks take logarithms of noise; y: labels [N], int64, if there are classes; context: tokens
    [N, T, C], of a network that attends to some.
    """
    generator = torch.Generator().manual_seed(1)
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    inputs = {"x": torch.randn(shape, generator=generator, **_FLOAT32).to(dtype)}
    for name, op in (("t", "sinusoid"), ("y", "embed")):
        if name in config.graph.inputs:
            rows = max(node.rows for node in config.graph.nodes if node.op == op) or 1000
            inputs[name] = torch.randint(0, rows, (batch,), generator=generator, device="cpu")
    if "context" in config.graph.inputs:
        node = config.graph.inputs["context"]
        tokens = (batch, node.tokens or 1, node.out.c_max)
        inputs["context"] = torch.randn(tokens, generator=generator, **_FLOAT32).to(dtype)
    if any(node.fourier for node in config.graph.nodes):
        inputs["t"] = torch.randn(batch, generator=generator, **_FLOAT32)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def sampling_inputs(
    config: NetworkConfig, batch: int, dtype: torch.dtype, *, device: str = "cpu"
) -> dict[str, Tensor]:
    """Return `random_inputs` with one timestep in all rows, as a sampler calls the network."""
    inputs = random_inputs(config, batch, dtype, device=device)
    if "t" in inputs:
        inputs["t"] = inputs["t"][:1].expand(batch)
    return inputs


def channels_last(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs whose images are channels_last."""
    return {**inputs, "x": inputs["x"].contiguous(memory_format=torch.channels_last)}


def as_reference(net: SlimmableNetwork) -> SlimmableNetwork:
    """Return the network with contiguous weights, as the reference code has them.

    That is `net` if it has them; on a GPU its weights are channels_last, and this is a copy.
    """
    if all(parameter.is_contiguous() for parameter in net.parameters()):
        return net
    return copy.deepcopy(net).to(memory_format=torch.contiguous_format)


@contextmanager
def untimed_cudnn() -> Iterator[None]:
    """Let cuDNN choose convolutions without timing them, as the reference code leaves it.

    Every width has its own shapes: to time the algorithms for all of them takes minutes.
    """
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, False
    try:
        yield
    finally:
        cudnn.benchmark = before


class SlicingNetwork:
    """A network as the reference code runs it: plain PyTorch, each weight sliced in every call.

    Called as (x, t, width); NCHW, `torch.cat`, bmm attention.

    Args:
        net: the network whose parameters are used, not copied.
    """

    def __init__(self, net: SlimmableNetwork) -> None:
        self._graph, self._config = net.graph, net.config
        self._tensors = net.state_dict(keep_vars=True)
        self._calls: dict[float, dict[Node, list[Function]]] = {}

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        width: float,
        y: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Predict from images x [N, C, H, W] at integer timesteps t [N]; y and context as of ours.

        Returns:
            [N, C', H, W].
        """
        if width not in self._calls:
            self._calls[width] = self._calls_at(width)
        given = {**named_inputs(x, t, y, context), "augment": None}
        value: Values = {node.index: given[name] for name, node in self._graph.inputs.items()}
        run(self._graph.walk, _SlicingWords(self._calls[width].__getitem__), value)
        return value[self._graph.output.index]

    def _calls_at(self, width: float) -> dict[Node, list[Function]]:
        """What computes each part of a node that has layers."""
        counts = self._config.counts(width)
        calls: dict[Node, list[Function]] = {}
        for layer in layers(self._graph):
            calls.setdefault(layer.node, []).append(self._call_of(layer, counts))
        for node in self._graph.nodes:
            if node.op == "sinusoid":
                calls[node] = [self._embedding(node)]
        return calls

    def _call_of(self, layer: Layer, counts: Counts) -> Function:
        node, c_out = layer.node, counts[layer.node.index]
        weight = self._tensors[f"{layer.name}.weight"]
        if node.op == "embed":
            return lambda y: F.embedding(y, weight[:, :c_out])
        bias = self._tensors.get(f"{layer.name}.bias")  # of every layer but an input's
        prefixes = columns(node, counts, self._config.slicing)
        if node.op == "layer_norm":
            return lambda x: F.layer_norm(
                x, x.shape[-1:], weight[:c_out], bias[:c_out], node.eps
            )
        if node.op == "norm":
            groups = self._config.slicing.group_count(node.out.c_max, c_out, node.groups)
            return lambda x: F.group_norm(
                x, groups, _sliced(weight, prefixes, 0), _sliced(bias, prefixes, 0), node.eps
            )
        parts = [(slice(c_out), part) for part in prefixes]
        if node.op in ("linear", "pointwise"):
            (prefix,) = prefixes
            row = None if bias is None else bias[..., :c_out].flatten()
            return lambda x: F.linear(x, weight[..., :c_out, prefix].flatten(0, -2), row)
        stride, padding = node.stride, node.kernel // 2 + node.ring - node.pad_end
        return lambda x: F.conv2d(x, _sliced(weight, parts, 1), bias[:c_out], stride, padding)

    def _embedding(self, node: Node) -> Function:
        if node.rows:
            table = self._tensors[node.name]
            return lambda t: F.embedding(t, table)
        dtype = self._tensors[layers(self._graph)[0].name + ".weight"].dtype
        frozen = self._tensors[node.name] if node.fourier else None
        return lambda t: embed_node(node, t, frozen, dtype)


def _sliced(tensor: Tensor, parts: Sequence[Any], dim: int) -> Tensor:
    if len(parts) == 1:
        return tensor[parts[0]]
    return torch.cat([tensor[part] for part in parts], dim)


class _SlicingWords(PlainWords):
    def attend(self, node: Node, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, c, height, width = q.shape
        d = node.out.head or c
        q, k, v = (part.reshape(n * c // d, d, -1) for part in (q, k, v))
        scores = torch.bmm(q.transpose(1, 2), k) * d**-0.5  # [N heads, T, T']
        y = torch.bmm(v, scores.softmax(dim=-1).transpose(1, 2))  # [N heads, d, T]
        return y.view(n, c, height, width)


@dataclass
class Step:
    """A candidate at a width, ready to run: weights cut out, compiled, rearranged, captured.

    `setup_s` is how long that took. On the CPU the steps of ours share `arena_bytes` for their
    activations and `packed_bytes` of packed weights of all widths; on a GPU every candidate
    keeps `held_bytes` of weights of its own and graphs. `uncompiled` says why ours runs as the
    module, if it does.
    """

    call: Call
    setup_s: float
    arena_bytes: int = 0
    packed_bytes: int = 0
    held_bytes: int = 0
    uncompiled: str | None = None


@dataclass
class Steps:
    """(width, candidate) -> Step, and why some are missing."""

    ready: dict[tuple[float, str], Step] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def at(self, width: float) -> dict[str, Step]:
        """Return the candidates of a width."""
        return {name: step for (other, name), step in self.ready.items() if other == width}

    def held_bytes(self, names: Sequence[str]) -> dict[str, int]:
        """Return what each candidate keeps for all widths."""
        return {
            name: sum(step.held_bytes for (_, other), step in self.ready.items() if other == name)
            for name in names
        }


def prepare_steps(
    config: NetworkConfig,
    widths: Sequence[float],
    names: Sequence[str],
    batch: int,
    setting: Setting,
    compile_limit_s: float = math.inf,
) -> Steps:
    """Return the candidates at each width; all of a width compute one function of one input.

    Call it and the steps without gradients and with the setting active.

    Args:
        config: the network, filled with random weights; see `config_at`.
        widths: widths to run, in the order in which they are compiled.
        names: some of STEP_CANDIDATES.
        batch: images.
        setting: device and arithmetic.
        compile_limit_s: "compiled" is left out at widths that would probably end later after the
            start of this call.
    """
    start = time.perf_counter()
    last_s = _COMPILE_S
    steps = Steps()
    variants = {width: config_at(config, width) for width in widths}
    builders = {}
    for variant in dict.fromkeys(variants.values()):
        own = [width for width in widths if variants[width] == variant]
        builders[variant] = _Builder(variant, own, batch, setting)
    # Compiling may take minutes and fail: all else is ready before.
    for name in sorted(names, key=lambda name: name == "compiled"):
        for width in widths:
            spent_s = time.perf_counter() - start
            if name == "compiled" and spent_s + last_s > compile_limit_s:
                steps.left_out.append(f"{name} at width {width:g}: no time left to compile")
                continue
            try:
                step = builders[variants[width]].step(name, width)
            except RuntimeError as error:
                if name != "compiled":
                    raise
                steps.failed.append(f"{name} at width {width:g}: {error}")
                continue
            steps.ready[width, name] = step
            if name == "compiled":
                last_s = step.setup_s
    return steps


class _Builder:
    """One method a candidate, named as in STEP_CANDIDATES; `step` calls it."""

    def __init__(
        self, config: NetworkConfig, widths: Sequence[float], batch: int, setting: Setting
    ) -> None:
        self.net = random_network(config).to(setting.place, setting.kind)
        self.inputs = sampling_inputs(config, batch, setting.kind, device=setting.place)
        self.inputs_cl = channels_last(self.inputs)
        self.widths, self.device = widths, setting.device
        self.reference = SlicingNetwork(as_reference(self.net))
        self.runner = self.device.runner(self.net)

    def step(self, name: str, width: float) -> Step:
        before = self.device.held_bytes()
        start = time.perf_counter()
        call: Call = getattr(self, name)(width)
        step = Step(call, time.perf_counter() - start)
        step.held_bytes = self.device.held_bytes() - before
        if name == "ours" and not self.device.on_gpu:
            x = self.inputs["x"]
            step.arena_bytes = self.runner.activation_bytes(width, x.shape, x.dtype)
            step.packed_bytes = self.runner.packed_bytes()
        if name == "ours":
            step.uncompiled = self.uncompiled
        return step

    def slicing(self, width: float) -> Call:
        def call() -> Tensor:
            with untimed_cudnn():
                return self.reference(**self.inputs, width=width)

        return call

    def dense(self, width: float) -> Call:
        return partial(self.net.export_subnet(width), **self.inputs)

    def dense_cl(self, width: float) -> Call:
        return partial(self._export_channels_last(width), **self.inputs_cl)

    def compiled(self, width: float) -> Call:
        return self.device.compile(self._export_channels_last(width), self.inputs_cl)

    def _export_channels_last(self, width: float) -> DenseNetwork:
        dense = self.net.export_subnet(width)
        return dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @cached_property
    def uncompiled(self) -> str | None:
        """Why the runner runs steps as the module; None: it makes them ready."""
        x = self.inputs["x"]
        reason = self.runner.reason_against(x.dtype, x.device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.runner.prepare(self.widths, x.shape, x.dtype, x.device)
        said = [str(warning.message) for warning in caught]
        reason = reason or next((text for text in said if "uncompiled" in text), None)
        if reason is not None and not self.device.on_gpu:
            raise Refusal(f"run_unet_step: ours would run uncompiled, {reason}")
        return reason

    def ours(self, width: float) -> Call:
        if self.uncompiled is not None:
            return self.ours_module(width)
        call = partial(self.runner, **self.inputs_cl, width=width)
        call()  # packs the weights, or captures
        return call

    def ours_module(self, width: float) -> Call:
        return partial(self.net.run_modules, **self.inputs_cl, width=width)
