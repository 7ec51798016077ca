"""The U-Net of ADM, improved DDPM and latent diffusion, slimmable: configuration, description.

Source: Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3; Nichol
and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models"; Rombach et al. 2022,
"High-Resolution Image Synthesis with Latent Diffusion Models".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import Any

from ddsm_ext.graph.graph import Graph
from ddsm_ext.graph.node import Node, Resampling
from ddsm_ext.models.transformer import spatial_transformer
from ddsm_ext.models.unet import UShapeConfig, self_attention, u_shape
from ddsm_ext.settings import Refusal, is_number

# Its last layers of branches, of attention and of the network start at zero.
ZERO = 0.0


@dataclass(frozen=True)
class ADMConfig(UShapeConfig):
    """Shape of a slimmable ADM U-Net.

    Args:
        image_size: side of the square images in pixels, divisible by 2 ** (levels - 1).
        image_channels: channels of the images.
        ch: channels of the first level at full width, times its multiple.
        ch_mult: per level, its channels as a multiple of `ch`.
        attn: levels (0 is the full resolution) with self-attention after each residual block.
        num_res_blocks: residual blocks a level on the way down; one more on the way up.
        dropout: dropout probability inside residual blocks.
        groups: group count of every GroupNorm at full width; divides the channels of each level.
        head_channels: channels of an attention head; None: `heads` says how many there are.
        heads: attention heads at full width, of c / heads channels; None: `head_channels`.
        scale_shift: the time embedding scales and shifts the second norm of a block; False: it is
            added before that norm.
        resample_blocks: residual blocks change the resolution; False: single convolutions do; a
            sequence says so of each change in turn, down and up.
        num_classes: labels of a class-conditional network; None: unconditional.
        null_class: one label more, `num_classes`, stands for no class, as classifier-free guidance
            needs it.
        learned_sigma: predict a second set of channels, for the variance.
        widths: widths to train and search, descending; any other in (0, 1] runs too.
        context_channels: channels of tokens that images attend to, by a transformer in the place of
            each self-attention; None: none. With `num_classes` a class is one token.
        context_tokens: of a context of no classes, as counts take them; a call may have any number.
        transformer_depth: blocks of such a transformer.
        attn_up: levels with attention on the way up; None: as on the way down.
        attn_middle: the middle has attention.
        norm_middle: that attention has a norm.
        pad_end: convolutions that halve the resolution pad at the end of rows and columns alone.
        eps: added to the variance in norms.
        freq_shift: see `Node`.
        sines_first: of the time embedding; False: the cosines.
        time_ch: channels of the sinusoids, a quarter of the time embedding's; None: `ch`.
        family: "adm", by which a file of settings tells it from other families.

    Raises:
        TypeError, ValueError: a field has the wrong type or cannot work, in one sentence.
    """

    image_size: int
    image_channels: int = 3
    ch: int = 192
    ch_mult: tuple[int, ...] = (1, 2, 3, 4)
    attn: tuple[int, ...] = (1, 2, 3)
    num_res_blocks: int = 3
    dropout: float = 0.1
    groups: int = 32
    head_channels: int | None = 64
    heads: int | None = None
    scale_shift: bool = True
    resample_blocks: bool | tuple[bool, ...] = True
    num_classes: int | None = None
    null_class: bool = False
    learned_sigma: bool = True
    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    context_channels: int | None = None
    context_tokens: int = 1
    transformer_depth: int = 1
    attn_up: tuple[int, ...] | None = None
    attn_middle: bool = True
    norm_middle: bool = True
    pad_end: bool = False
    eps: float = 1e-5
    freq_shift: float = 0.0
    sines_first: bool = False
    time_ch: int | None = None
    family: str = "adm"

    def __post_init__(self) -> None:
        if self.attn_up is not None:
            self._check_ints("attn_up", 0)
        self._check_u_shape()
        for name in ("heads", "num_classes", "context_channels"):
            self._check_int(name, 1, 10**6, optional=True)
        self._check_int("context_tokens", 1, 10**6)
        self._check_int("transformer_depth", 1, 100)
        self._check_int("time_ch", 2, 10**6, optional=True)
        time = f"a divisor of {4 * self._time_ch}, the channels of the time embedding"
        self._check("groups", 4 * self._time_ch % self.groups == 0, time)
        for name in ("scale_shift", "null_class", "learned_sigma", "attn_middle", "norm_middle",
                     "pad_end", "sines_first"):  # fmt: skip
            self._check_type(name, isinstance(getattr(self, name), bool), "True or False")
        for name in ("eps", "freq_shift"):
            self._check(name, is_number(getattr(self, name), 0), "a number >= 0")
        self._check_resampling()
        levels, highest = len(self.ch_mult), max(self.attn_up or (), default=0)
        self._check("attn_up", highest < levels, f"levels from 0 to {levels - 1}")
        without = self.null_class and self.num_classes is None
        self._check("null_class", not without, "False, as num_classes is None")
        self._check_choice("family", ("adm",))
        if (self.heads is None) == (self.head_channels is None):
            raise Refusal(
                f"ADMConfig: heads is {self.heads}, head_channels is {self.head_channels}; "
                "need one of them"
            )
        for c in sorted(self._attention_channels()):
            self._check("heads", c % (self.heads or 1) == 0, f"a divisor of {c} channels")
        super().__post_init__()

    def _check_resampling(self) -> None:
        value, changes = self.resample_blocks, 2 * (len(self.ch_mult) - 1)
        if not isinstance(value, bool):
            need = f"True, False, or {changes} of them, one a change of resolution"
            several = isinstance(value, tuple | list) and all(isinstance(v, bool) for v in value)
            self._check_type("resample_blocks", several, need)
            self._check("resample_blocks", len(value) == changes, need)
            object.__setattr__(self, "resample_blocks", tuple(value))

    def _attention_channels(self) -> set[int]:
        levels = dict(enumerate(self.ch_mult))  # others are refused later
        up = {self.ch * levels[level] for level in self.attn_up or () if level in levels}
        return super()._attention_channels() | up

    @property
    def _time_ch(self) -> int:
        return self.time_ch or self.ch

    @property
    def label_count(self) -> int:
        """See `NetworkConfig.label_count`."""
        return self.num_classes or 0

    @property
    def null_label(self) -> int | None:
        """See `NetworkConfig.null_label`."""
        return self.num_classes if self.null_class else None

    @property
    def predicts_variance(self) -> bool:
        """See `NetworkConfig.predicts_variance`."""
        return self.learned_sigma

    def describe(self) -> Graph:
        """Return the network."""
        g = Graph(self.image_size)
        x, t = g.input("x", self.image_channels, image=True), g.input("t")
        label, context = self._conditions(g)
        c = 4 * self._time_ch
        time = g.sinusoid(
            "time_embedding.table", t, self._time_ch, halves=True, swapped=self.sines_first,
            freq_shift=self.freq_shift,
        )  # fmt: skip
        time = g.linear("time_embedding.linear1", time, c, silu=True)
        # Each block's projection starts with SiLU: applied here once instead of in every block.
        time = g.linear("time_embedding.linear2", time, c, silu=True, shift=label)
        blocks = self.resample_blocks
        changes = iter(blocks if isinstance(blocks, tuple) else repeat(blocks))

        def residual(name: str, x: tuple[Node, ...], c: int, attention: bool) -> Node:
            h = self._residual(g, name, x, time, c)
            return self._attention(g, f"{name}.attention", h, context) if attention else h

        def resample(name: str, h: Node, resample: Resampling) -> Node:
            if next(changes):
                return self._residual(g, name, (h,), time, h.out.c_max, resample=resample)
            if resample == "up":
                return g.conv(f"{name}.conv", h, h.out.c_max, resample="up")
            return g.conv(f"{name}.conv", h, h.out.c_max, stride=2, pad_end=self.pad_end)

        channels = [self.ch * mult for mult in self.ch_mult]
        h = g.conv("head", x, channels[0])
        h = u_shape(h, channels, self.num_res_blocks, self.attn, residual, resample,
                    attn_up=self.attn_up, attn_middle=self.attn_middle)  # fmt: skip
        h = g.norm("tail.norm", h, silu=True, eps=self.eps)
        outputs = self.image_channels * (2 if self.learned_sigma else 1)
        g.conv("tail.conv", h, outputs, role="fixed", gain=ZERO)
        return g

    def _conditions(self, g: Graph) -> tuple[Node | None, Node | None]:
        """What is added to the time embedding, and what images attend to."""
        if self.num_classes is None:
            if self.context_channels is None:
                return None, None
            return None, g.input("context", self.context_channels, tokens=self.context_tokens)
        y, rows = g.input("y"), self.num_classes + self.null_class
        if self.context_channels is None:
            return g.embed("label_embedding", y, rows, 4 * self._time_ch), None
        return None, g.embed("label_embedding", y, rows, self.context_channels, role="fixed")

    def _residual(
        self,
        g: Graph,
        name: str,
        x: tuple[Node, ...],
        time: Node,
        c_out: int,
        *,
        resample: Resampling | None = None,
    ) -> Node:
        """h = conv2(drop(silu(norm2(conv1(resample(silu(norm1(x))))) modulated by time)) + x."""
        h = g.norm(f"{name}.norm1", x, silu=True, eps=self.eps)
        if self.scale_shift:
            film = g.linear(f"{name}.time", time, c_out, parts=("scale", "shift"))
            h = g.conv(f"{name}.conv1", h, c_out, resample=resample)
            h = g.norm(f"{name}.norm2", h, silu=True, modulate=film, eps=self.eps)
        else:
            shift = g.linear(f"{name}.time", time, c_out)
            h = g.conv(f"{name}.conv1", h, c_out, resample=resample, shift=shift)
            h = g.norm(f"{name}.norm2", h, silu=True, eps=self.eps)
        h = g.dropout(f"{name}.dropout", h, self.dropout)
        shortcut = x[0]
        if len(x) > 1 or x[0].out.c_max != c_out:
            shortcut = g.conv(f"{name}.shortcut", x, c_out, 1)
        elif resample is not None:
            shortcut = g.resample(f"{name}.resample", x[0], resample)
        return g.conv(f"{name}.conv2", h, c_out, residual=shortcut, gain=ZERO)

    def _attention(self, g: Graph, name: str, x: Node, context: Node | None) -> Node:
        head = self.head_channels
        if self.heads is not None and self.heads > 1:  # a single head shrinks with its layer
            head = x.out.c_max // self.heads
        if context is not None:
            return spatial_transformer(g, name, x, context, head, self.transformer_depth)
        normed = self.norm_middle or not name.startswith("middle.")
        return self_attention(g, name, x, head, gain=ZERO, normed=normed, eps=self.eps)


_LATENT: dict[str, Any] = {
    "image_channels": 3, "scale_shift": False, "resample_blocks": False, "learned_sigma": False,
    "dropout": 0.0,
}  # fmt: skip

PRESETS: dict[str, ADMConfig] = {
    # 8x8 grey digits of scikit-learn by class: small enough to train in minutes on two cores.
    "adm-digits": ADMConfig(
        image_size=8, image_channels=1, ch=32, ch_mult=(1, 2), attn=(), num_res_blocks=1,
        dropout=0.0, groups=8, head_channels=16, num_classes=10, null_class=True,
        learned_sigma=False,
    ),
    # A small network for the classes of CIFAR-10, of a size that two cores train in hours.
    "adm-cifar10": ADMConfig(
        image_size=32, ch=64, ch_mult=(1, 2, 2), attn=(1, 2), num_res_blocks=1, dropout=0.1,
        groups=16, head_channels=32, num_classes=10, null_class=True, learned_sigma=False,
    ),
    # Nichol and Dhariwal's CIFAR-10 network (L_hybrid), unconditional: 52.55 M parameters.
    "iddpm-cifar10": ADMConfig(
        image_size=32, ch=128, ch_mult=(1, 2, 2, 2), attn=(1, 2), num_res_blocks=3, dropout=0.3,
        head_channels=None, heads=4, resample_blocks=False,
    ),
    # Dhariwal and Nichol's class-conditional ImageNet at 64x64: 295.90 M parameters, 109.68 G MACs.
    "adm-imagenet64": ADMConfig(image_size=64, num_classes=1000),
    # A small network for latents of 32x32 photographs, as `ddsm autoencoder` makes them by 2.
    "ldm2-cifar10": ADMConfig(
        **{**_LATENT, "image_channels": 4}, image_size=16, ch=48, ch_mult=(1, 2), attn=(1,),
        num_res_blocks=1, groups=16, head_channels=24,
    ),
    # Rombach et al.'s latents of 256x256 images, 64x64 by a VQ-f4: 274.06 M parameters, 101.20 G
    # MACs. They have no AFHQ network; the paper of DDSM trained one of this kind.
    **{
        name: ADMConfig(
            **_LATENT, image_size=64, ch=224, num_res_blocks=2, head_channels=32
        )
        for name in ("ldm4-lsun-bedroom", "ldm4-celebahq", "ldm4-afhq")
    },
    # By a KL-f8: 294.97 M, 20.92 G.
    "ldm8-lsun-church": ADMConfig(
        **{**_LATENT, "image_channels": 4, "scale_shift": True, "resample_blocks": True},
        image_size=32, ch_mult=(1, 2, 2, 4, 4), attn=(0, 1, 2, 3), num_res_blocks=2,
        head_channels=None, heads=8,
    ),
    # "cin256-v2", of classes as a token: 400.92 M, 104.23 G less what one token makes needless.
    "ldm4-imagenet": ADMConfig(
        **_LATENT, image_size=64, ch_mult=(1, 2, 3, 5), num_res_blocks=2,
        head_channels=None, heads=1, context_channels=512, num_classes=1000, null_class=True,
    ),
}  # fmt: skip
