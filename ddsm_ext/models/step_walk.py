"""The order of a U-Net's layers in a denoising step, for any way to run layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from ddsm_ext.models.unet import SlimmableUNet, active_counts
from ddsm_ext.nn import blocks, layers
from ddsm_ext.runner.layers import ConvWeight, Linear


class StepLayers(Protocol):
    """`runner.layers.Layers`, which appends to a program, or `runner.cuda_layers.CudaLayers`.

    Activations, norms and time embeddings are the layers' own kinds of objects.
    """

    def linears(
        self, x: Any, c_in: int, linears: Sequence[Linear], **more: Any
    ) -> Iterable[Any]: ...
    def norm(self, sources: Any, weight: Tensor, bias: Tensor, groups: int, **more: Any) -> Any: ...
    def conv2d(self, sources: Any, conv: ConvWeight, c_out: int, **more: Any) -> Any: ...
    def attention(self, qkv: Any, heads: int) -> Any: ...


class StepWalk:
    """Calls the layers of a U-Net at one width.

    Args:
        net: the network.
        run: what its layers are called on.
        width: a width that the network's config has checked.
    """

    def __init__(self, net: SlimmableUNet, run: StepLayers, width: float) -> None:
        self.net = net
        self.run = run
        (self._c_head, self._c_time), *self._counts = active_counts(net.config, net.layout, width)

    def __call__(self, x: Any, embedding: Any, **last: Any) -> Any:
        """Return the activation of the prediction.

        Args:
            x: activation of the noisy images.
            embedding: sinusoidal embedding of their timesteps, [N, config.ch].
            last: further arguments of the last convolution.
        """
        net, config = self.net, self.net.config
        modules = (*net.down, *net.middle, *net.up)
        time = self._time(embedding, modules)
        h = self.run.conv2d((x,), _conv(net.head), self._c_head, moments=True)
        skips = [h]
        following = [block.kind for block in net.layout[1:]] + ["tail"]
        for block, module, after, (c_out, c_qkv) in zip(
            net.layout, modules, following, self._counts, strict=True
        ):
            # Only a block that enlarges the image reads its input without a norm.
            moments = after != "upsample"
            if block.kind == "residual":
                # No variable: the sources' memory is free once the block has run.
                h = self._residual_block(
                    module,
                    (h, skips.pop()) if block.c_skip else (h,),
                    next(time),
                    c_out,
                    c_qkv,
                    moments,
                )
            else:
                h = self.run.conv2d((h,), _conv(module.conv), c_out, moments=moments)
            if block.name.startswith("down"):
                skips.append(h)
        norm = self._norm(net.tail.norm, (h,))
        conv = _conv(net.tail.conv)
        return self.run.conv2d((h,), conv, config.image_channels, norm=norm, **last)

    def _time(self, embedding: Any, modules: Sequence[Any]) -> Iterator[Any]:
        """Return what the time embedding adds to each residual block, [N, c_out], in order."""
        module = self.net.time_embedding
        x, c = embedding, self.net.config.ch
        for layer in (module.linear1, module.linear2):
            linear = Linear(layer.weight, layer.bias, self._c_time)
            (x,) = self.run.linears(x, c, (linear,), silu=True)
            c = self._c_time
        # In one call, as they read the same rows.
        projections = [
            Linear(module.time.weight, module.time.bias, c_out)
            for block, module, (c_out, _) in zip(
                self.net.layout, modules, self._counts, strict=True
            )
            if block.kind == "residual"
        ]
        return iter(self.run.linears(x, c, projections))

    def _norm(self, module: layers.SlicedGroupNorm, sources: tuple[Any, ...]) -> Any:
        c = sum(source.c for source in sources)
        size = module.channels_per_group
        return self.run.norm(
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
        sources: tuple[Any, ...],
        time: Any,
        c_out: int,
        c_qkv: int,
        moments: bool,
    ) -> Any:
        h = self.run.conv2d(
            sources,
            _conv(module.conv1),
            c_out,
            # Not a variable: layers that run at once free its memory after this call.
            norm=self._norm(module.norm1, sources),
            image_bias=time,
            moments=True,
        )
        shortcut = module.shortcut
        h = self.run.conv2d(
            (h,),
            _conv(module.conv2),
            c_out,
            norm=self._norm(module.norm2, (h,)),
            residual=sources[0] if shortcut is None else None,
            shortcut=None if shortcut is None else (sources, _conv(shortcut)),
            moments=moments or module.attention is not None,
        )
        if module.attention is None:
            return h
        return self._attention_block(module.attention, h, c_qkv, moments)

    def _attention_block(
        self, module: blocks.AttentionBlock, x: Any, c_qkv: int, moments: bool
    ) -> Any:
        projections = (module.q, module.k, module.v)
        qkv = ConvWeight(tuple(p.weight for p in projections), tuple(p.bias for p in projections))
        h = self.run.conv2d((x,), qkv, c_qkv, norm=self._norm(module.norm, (x,)))
        heads = 1 if module.head_channels is None else c_qkv // module.head_channels
        h = self.run.attention(h, heads)
        return self.run.conv2d((h,), _conv(module.out), x.c, residual=x, moments=moments)


def _conv(module: layers.SlicedConv2d) -> ConvWeight:
    return ConvWeight(
        (module.weight,), (module.bias,), module.stride, module.upsample, module.skip_offset
    )
