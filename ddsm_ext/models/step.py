"""A U-Net step compiled into one native call per width: what the sampler runs by default."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddsm_ext.models.dense import check_inputs
from ddsm_ext.models.unet import SlimmableUNet, active_counts
from ddsm_ext.nn import blocks, embedding, layers
from ddsm_ext.nn.sinusoidal import embed_time
from ddsm_ext.ops._panels import panel_bytes
from ddsm_ext.runner.layers import Activation, ConvWeight, Layers, Norm
from ddsm_ext.runner.program import Buffer, Plan, Program
from ddsm_ext.runner.weights import WatchedWeights

_DTYPES = (torch.float32, torch.bfloat16)
# What a step is compiled from; anything else in the network (a wrapped layer, say) is not known.
_KNOWN = (
    SlimmableUNet,
    nn.ModuleList,
    blocks.AttentionBlock,
    blocks.OutputBlock,
    blocks.ResampleBlock,
    blocks.ResidualBlock,
    embedding.TimeEmbedding,
    layers.SlicedConv2d,
    layers.SlicedGroupNorm,
    layers.SlicedLinear,
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_EMBEDDINGS_KEPT = 4096


# [N, c] float32, and c
Time = tuple[Buffer, int]


class _Key(NamedTuple):
    """What a step is compiled for."""

    width: float
    images: int
    image_height: int
    image_width: int
    dtype: torch.dtype


@dataclass(frozen=True)
class _Step:
    """A program and the buffers through which a caller feeds and reads it."""

    program: Program
    x: Buffer
    embedding: Buffer
    y: Buffer


class _StepBuilder:
    """Walks a U-Net at one width and appends its layers to a program."""

    def __init__(self, net: SlimmableUNet, key: _Key) -> None:
        self.net = net
        self.config = net.config
        self.key = key
        self.program = Program()
        self.layers = Layers(self.program, key.images, key.dtype)

    def build(self) -> _Step:
        net, config, key = self.net, self.config, self.key
        (c_head, c_time), *counts = active_counts(config, net.layout, key.width)
        x = self.layers.activation(config.image_channels, key.image_height, key.image_width)
        embedding = self.layers.floats(key.images * config.ch)
        y = self.layers.activation(config.image_channels, key.image_height, key.image_width)
        self.program.pinned += [x.buffer, embedding, y.buffer]
        time = self._time(embedding, c_time)
        h = self.layers.conv2d((x,), _conv(net.head), c_head, moments=True)
        skips = [h]
        modules = (*net.down, *net.middle, *net.up)
        following = [block.kind for block in net.layout[1:]] + ["tail"]
        for block, module, after, (c_out, c_qkv) in zip(
            net.layout, modules, following, counts, strict=True
        ):
            # Only a block that enlarges the image reads its input without a norm.
            moments = after != "upsample"
            if block.kind == "residual":
                sources = (h, skips.pop()) if block.c_skip else (h,)
                h = self._residual_block(module, sources, time, c_out, c_qkv, moments)
            else:
                h = self.layers.conv2d((h,), _conv(module.conv), c_out, moments=moments)
            if block.name.startswith("down"):
                skips.append(h)
        norm = self._norm(net.tail.norm, (h,))
        conv = _conv(net.tail.conv)
        self.layers.conv2d((h,), conv, config.image_channels, norm=norm, y=y)
        return _Step(self.program, x.buffer, embedding, y.buffer)

    def _time(self, embedding: Buffer, c_time: int) -> Time:
        module = self.net.time_embedding
        x, c = embedding, self.config.ch
        for linear in (module.linear1, module.linear2):
            x, c = self.layers.linear(x, c, linear.weight, linear.bias, c_time), c_time
            x = self.layers.silu(x, c)
        return x, c

    def _norm(self, module: layers.SlicedGroupNorm, sources: tuple[Activation, ...]) -> Norm:
        c = sum(source.c for source in sources)
        size = module.channels_per_group
        return self.layers.norm(
            sources,
            module.weight,
            module.bias,
            c // size if size else module.groups,
            skip_offset=module.skip_offset,
            silu=module.silu,
        )

    def _residual_block(
        self,
        module: blocks.ResidualBlock,
        sources: tuple[Activation, ...],
        time: Time,
        c_out: int,
        c_qkv: int,
        moments: bool,
    ) -> Activation:
        norm = self._norm(module.norm1, sources)
        shift = self.layers.linear(*time, module.time.weight, module.time.bias, c_out)
        h = self.layers.conv2d(
            sources, _conv(module.conv1), c_out, norm=norm, image_bias=shift, moments=True
        )
        residual = sources[0]
        if module.shortcut is not None:
            residual = self.layers.conv2d(sources, _conv(module.shortcut), c_out)
        h = self.layers.conv2d(
            (h,),
            _conv(module.conv2),
            c_out,
            norm=self._norm(module.norm2, (h,)),
            residual=residual,
            moments=moments or module.attention is not None,
        )
        if module.attention is None:
            return h
        return self._attention_block(module.attention, h, c_qkv, moments)

    def _attention_block(
        self, module: blocks.AttentionBlock, x: Activation, c_qkv: int, moments: bool
    ) -> Activation:
        projections = (module.q, module.k, module.v)
        qkv = ConvWeight(
            tuple(p.weight for p in projections),
            torch.cat([p.bias.detach() for p in projections]),
        )
        h = self.layers.conv2d((x,), qkv, c_qkv, norm=self._norm(module.norm, (x,)))
        heads = 1 if module.head_channels is None else c_qkv // module.head_channels
        h = self.layers.attention(h, heads)
        return self.layers.conv2d((h,), _conv(module.out), x.c, residual=x, moments=moments)


def _conv(module: layers.SlicedConv2d) -> ConvWeight:
    return ConvWeight(
        (module.weight,), module.bias, module.stride, module.upsample, module.skip_offset
    )


def _structure_problem(net: SlimmableUNet) -> str | None:
    """Return why the network is not what a step can be compiled from, or None."""
    for name, module in net.named_modules():
        if type(module) not in _KNOWN:
            return f"{name or 'the network'} is a {type(module).__name__}"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return f"{name or 'the network'} has forward hooks"
    for name, parameter in net.named_parameters():
        if parameter.device.type != "cpu":
            return f"{name} is on {parameter.device}"
        if not parameter.is_contiguous() or parameter.dtype != net.head.weight.dtype:
            return f"{name} is not contiguous or of another dtype than the rest"
    for block in net.layout:
        if block.c_skip and not block.shortcut:
            return f"{block.name} adds an unjoined pair without a shortcut"
    return None


class UNetStepRunner:
    """Runs a `SlimmableUNet` as plans compiled per (width, batch, size, dtype); see `StepRunner`.

    A plan is compiled at its first use and again when a weight has changed. All plans share one
    piece of memory, so calls from several threads take turns. What cannot be compiled runs as the
    module, with one warning that says why. A module or hook that was added or replaced is noticed
    by `prepare`, which the sampler calls before each batch.

    Args:
        net: the network; its parameters are used where they are.
    """

    def __init__(self, net: SlimmableUNet) -> None:
        self._net = weakref.ref(net)
        self._lock = threading.Lock()
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._steps: dict[_Key, _Step] = {}
        self._plans: dict[_Key, Plan] = {}
        self._problem = _structure_problem(net)
        self._weights = WatchedWeights(net)
        self._embeddings: dict[float, Tensor] = {}
        self._warned: set[str] = set()

    def prepare(
        self,
        widths: Sequence[float],
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Compile the steps at `widths` for x of `shape` [N, C, H, W], `dtype` and `device`."""
        net = self._module()
        self._problem = _structure_problem(net)
        self._weights = WatchedWeights(net)
        if self.reason_against(dtype, device) is None:
            with self._lock:
                self._refresh()
                for width in widths:
                    self._step(_Key(net.config.check_width(width), shape[0], *shape[2:], dtype))

    def __call__(self, x: Tensor, t: Tensor, width: float) -> Tensor:
        """Return the prediction [N, C, H, W] for x [N, C, H, W] at timesteps t [N]."""
        net = self._module()
        width = net.config.check_width(width)
        reason = self.reason_against(x.dtype, x.device)
        if reason is not None:
            self._warn(reason)
            return net(x, t, width)
        x, t = check_inputs("UNetStepRunner", net.config, x, t, net.head.weight)
        with self._lock, torch.no_grad():
            self._refresh()
            key = _Key(width, x.shape[0], *x.shape[2:], x.dtype)
            step, plan = self._step(key), self._bound(key)
            shape = (x.shape[0], x.shape[2], x.shape[3], x.shape[1])
            plan.view(step.x, x.dtype, shape).copy_(x.permute(0, 2, 3, 1))
            ch = net.config.ch
            plan.view(step.embedding, torch.float32, (len(x), ch)).copy_(self._embedding(net, t))
            plan.run()
            y = plan.view(step.y, x.dtype, shape).clone()  # [N, H, W, C]
        return y.permute(0, 3, 1, 2)  # [N, C, H, W], channels_last

    def activation_bytes(
        self, width: float, shape: tuple[int, int, int, int], dtype: torch.dtype
    ) -> int:
        """Return the peak memory of a compiled step's activations for x of `shape`."""
        with self._lock:
            self._refresh()
            return self._step(_Key(width, shape[0], *shape[2:], dtype)).program.arena_bytes

    def panel_bytes(self) -> int:
        """Return the memory of the rearranged weights that exist now, for all widths together."""
        return panel_bytes(self._module().parameters())

    def reason_against(self, dtype: torch.dtype, device: torch.device) -> str | None:
        """Return why steps of this dtype and device run as the module; None: they are compiled."""
        net = self._module()
        if device.type != "cpu":
            return f"device is {device}, plans run on the CPU"
        if dtype not in _DTYPES:
            return f"dtype is {dtype}, plans take float32 or bfloat16"
        if torch.is_autocast_enabled("cpu"):
            return "autocast is on, plans compute in the dtype of x"
        weight = net.head.weight
        if weight.dtype not in (dtype, torch.float32):
            return f"the weights are {weight.dtype}, x is {dtype}"
        if net.training and net.config.dropout:
            return "the network is in training mode with dropout"
        return self._problem

    def _module(self) -> SlimmableUNet:
        net = self._net()
        if net is None:
            raise RuntimeError("UNetStepRunner: its network no longer exists; need a living one")
        return net

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"ddsm_ext: steps run uncompiled: {reason}", stacklevel=3)

    def _refresh(self) -> None:
        """Forget everything made from weights that have changed."""
        if self._weights.changed():
            self._steps.clear()
            self._plans.clear()
            self._embeddings.clear()

    def _step(self, key: _Key) -> _Step:
        if key not in self._steps:
            self._steps[key] = _StepBuilder(self._module(), key).build()
        return self._steps[key]

    def _bound(self, key: _Key) -> Plan:
        program = self._steps[key].program
        if program.arena_bytes > self._arena.numel():
            needed = max(step.program.arena_bytes for step in self._steps.values())
            with torch.inference_mode(False):
                self._arena = torch.empty(needed, dtype=torch.uint8)
            self._plans.clear()
        if key not in self._plans:
            self._plans[key] = program.bind(self._arena)
        return self._plans[key]

    def _embedding(self, net: SlimmableUNet, t: Tensor) -> Tensor:
        """Sinusoidal embedding [N, ch] or, for one t in all rows as in sampling, [1, ch]."""
        if len(t) > 1 and t.stride(0) != 0:
            return self._embed(net, t)
        value = t[0].item()
        if value not in self._embeddings:
            if len(self._embeddings) >= _EMBEDDINGS_KEPT:
                self._embeddings.clear()
            self._embeddings[value] = self._embed(net, t[:1])
        return self._embeddings[value]

    def _embed(self, net: SlimmableUNet, t: Tensor) -> Tensor:
        return embed_time(t, net.config.ch, net.time_embedding.table, torch.float32)
