"""The U-Nets of EDM, slimmable: DDPM++ and NCSN++ ("SongUNet") and ADM's ("DhariwalUNet").

They compute F(x; t) for t = c_noise(sigma), any real number; what is made of it, and of sigma, is
said in `diffusion/`.

Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models"
(EDM), table 1 and appendix C; Song et al. 2021, "Score-Based Generative Modeling through Stochastic
Differential Equations" (DDPM++ and NCSN++); Dhariwal and Nichol 2021, "Diffusion Models Beat GANs
on Image Synthesis" (ADM). Written from these; no line of EDM's own code is here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddsm_ext.graph.graph import Graph
from ddsm_ext.graph.node import Node, Resampling
from ddsm_ext.models.unet import LAST_LAYER_GAIN, UShapeConfig, self_attention, u_shape

SQRT_HALF = math.sqrt(0.5)
FOURIER_STD = 16.0  # of NCSN++'s frequencies
MOST_GROUPS = 32
LEAST_CHANNELS_PER_GROUP = 4
# On the initial weights of q, k and v of DDPM++ and NCSN++.
QKV_GAIN = math.sqrt(0.2)


class EDMConfig(UShapeConfig):
    """Base of the configs of EDM's U-Nets, whose blocks differ in what is said below.

    A norm over c channels has min(32, c / 4) groups. `groups` of the config counts the slices of
    which a width keeps some: it divides all of these.

    Attributes:
        num_classes: labels of a class-conditional network, which takes `num_classes` itself for
            "no class", too; None: unconditional.
        augment_channels: numbers that tell how an image was augmented; None: the network is not
            told.
    """

    num_classes: int | None
    augment_channels: int | None

    @property
    def label_count(self) -> int:
        """See `NetworkConfig.label_count`."""
        return self.num_classes or 0

    @property
    def null_label(self) -> int | None:
        """See `NetworkConfig.null_label`."""
        return self.num_classes

    @property
    def augment_count(self) -> int:
        """See `NetworkConfig.augment_count`."""
        return self.augment_channels or 0

    def _check_edm(self) -> None:
        self._check_u_shape()
        for name in ("num_classes", "augment_channels"):
            self._check_int(name, 1, 10**6, optional=True)
        time = f"a divisor of {4 * self.ch}, the channels of the time embedding"
        self._check("groups", 4 * self.ch % self.groups == 0, time)

    def _norm(
        self,
        g: Graph,
        name: str,
        x: Node | tuple[Node, ...],
        eps: float,
        modulate: Node | None = None,
    ) -> Node:
        """A norm with SiLU."""
        sources = x if isinstance(x, tuple) else (x,)
        groups = norm_groups(sum(source.out.c_max for source in sources))
        return g.norm(name, x, silu=True, eps=eps, groups=groups, modulate=modulate)

    def _augment(self, g: Graph, time: Node) -> Node:
        """Add the map of augmentation labels to a time embedding; it is never slimmed."""
        if self.augment_channels is None:
            return time
        given = g.input("augment", self.augment_channels)
        return g.linear(
            "time_embedding.augment", given, time.out.c_max, shift=time, role="fixed", bias=False
        )


def norm_groups(c: int) -> int:
    """Groups of a norm over `c` channels at full width."""
    return max(1, min(MOST_GROUPS, c // LEAST_CHANNELS_PER_GROUP))


@dataclass(frozen=True)
class SongUNetConfig(EDMConfig):
    """Shape of a slimmable DDPM++ or NCSN++ U-Net as EDM trains it.

    Args:
        image_size: side of the square images in pixels, divisible by 2 ** (levels - 1).
        image_channels: channels of the images.
        ch: channels of the first convolution at full width, and of the time embedding.
        ch_mult: per level, its channels as a multiple of `ch`.
        attn: levels (0 is the full resolution) with self-attention after each residual block on the
            way down, and after the last on the way up.
        num_res_blocks: residual blocks a level on the way down; one more on the way up.
        dropout: dropout probability inside residual blocks.
        groups: slices of which a width keeps some; divides the groups of every norm.
        head_channels: channels of an attention head; None means one head over all channels.
        time_mult: channels of the time embedding as a multiple of `ch`.
        fourier: random frequencies, as NCSN++ has them; False: sinusoids of t, as DDPM++.
        aux_residual: each level on the way down joins the image, convolved and halved, as in
            NCSN++.
        taps: of the filter that resamples: 2 (DDPM++) or 4 (NCSN++).
        num_classes: labels of a class-conditional network; `num_classes` itself means no class.
            None: unconditional.
        augment_channels: numbers that tell how an image was augmented; None: it is not told.
        widths: widths to train and search, descending; any other in (0, 1] runs too.
        family: by which a file of settings tells it from other families.

    Raises:
        TypeError, ValueError: a field has the wrong type or cannot work, in one sentence.
    """

    image_size: int
    image_channels: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (2, 2, 2)
    attn: tuple[int, ...] = (1,)
    num_res_blocks: int = 4
    dropout: float = 0.13
    groups: int = 32
    head_channels: int | None = None
    time_mult: int = 1
    fourier: bool = False
    aux_residual: bool = False
    taps: int = 2
    num_classes: int | None = None
    augment_channels: int | None = 9
    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    family: str = "song-unet"

    def __post_init__(self) -> None:
        self._check_edm()
        self._check_choice("family", ("song-unet",))
        self._check_int("time_mult", 1, 1024)
        for name in ("fourier", "aux_residual"):
            self._check_type(name, isinstance(getattr(self, name), bool), "True or False")
        self._check_int("taps", 2)
        self._check("taps", self.taps in (2, 4), "2 or 4")
        fits = self.taps == 4 or not self.aux_residual
        self._check("taps", fits, "4 beside aux_residual")
        super().__post_init__()

    def describe(self) -> Graph:
        """Return the network."""
        g = Graph(self.image_size)
        x = g.input("x", self.image_channels, image=True)
        time, image = self._time(g), x

        def residual(name: str, x: tuple[Node, ...], c: int, attention: bool) -> Node:
            return self._residual(g, name, x, time, c, attention=attention)

        def resample(name: str, h: Node, resample: Resampling) -> Node:
            nonlocal image
            h = self._residual(g, name, (h,), time, h.out.c_max, resample=resample)
            if self.aux_residual and resample == "down":
                h = image = self._join(g, name, image, h)
            return h

        channels = [self.ch * mult for mult in self.ch_mult]
        h = g.conv("head", x, self.ch)
        h = u_shape(h, channels, self.num_res_blocks, self.attn, residual, resample,
                    attn_up_last=True)  # fmt: skip
        h = self._norm(g, "tail.norm", h, 1e-6)
        g.conv("tail.conv", h, self.image_channels, role="fixed", gain=LAST_LAYER_GAIN)
        return g

    def _time(self, g: Graph) -> Node:
        """silu(linear2(silu(linear1(embedding of t + of y + of augment))))."""
        time = g.sinusoid(
            "time_embedding.table", g.input("t"), self.ch * self.time_mult, halves=True,
            swapped=True, freq_shift=0.0 if self.fourier else 1.0,
            fourier=FOURIER_STD if self.fourier else 0.0,
        )  # fmt: skip
        if self.num_classes is not None:
            rows, c = self.num_classes + 1, time.out.c_max
            time = g.embed("time_embedding.label", g.input("y"), rows, c, shift=time, role="fixed")
        time = self._augment(g, time)
        time = g.linear("time_embedding.linear1", time, 4 * self.ch, silu=True)
        return g.linear("time_embedding.linear2", time, 4 * self.ch, silu=True)

    def _join(self, g: Graph, name: str, image: Node, h: Node) -> Node:
        """(h + filter(conv(image))) / sqrt(2): beyond the image the convolution counts, too."""
        aux = g.conv(f"{name}.aux", image, h.out.c_max, ring=True)
        return g.resample(f"{name}.joined", aux, "down", taps=4, ring=True, residual=h,
                          scale=SQRT_HALF)  # fmt: skip

    def _residual(
        self,
        g: Graph,
        name: str,
        x: tuple[Node, ...],
        time: Node,
        c_out: int,
        *,
        resample: Resampling | None = None,
        attention: bool = False,
    ) -> Node:
        """(conv2(drop(silu(norm2(conv1(resample(silu(norm1(x)))) + time)))) + x) / sqrt(2)."""
        h = self._norm(g, f"{name}.norm1", x, 1e-6)
        shift = g.linear(f"{name}.time", time, c_out)
        h = g.conv(f"{name}.conv1", h, c_out, resample=resample, taps=self.taps, shift=shift)
        h = self._norm(g, f"{name}.norm2", h, 1e-6)
        h = g.dropout(f"{name}.dropout", h, self.dropout)
        if resample is not None:
            x = (g.resample(f"{name}.resample", x[0], resample, taps=self.taps),)
        shortcut = x[0]
        if resample is not None or len(x) > 1 or x[0].out.c_max != c_out:
            shortcut = g.conv(f"{name}.shortcut", x, c_out, 1)
        h = g.conv(f"{name}.conv2", h, c_out, residual=shortcut, scale=SQRT_HALF,
                   gain=LAST_LAYER_GAIN)  # fmt: skip
        if attention:
            h = self_attention(
                g, f"{name}.attention", h, self.head_channels, qkv_gain=QKV_GAIN, scale=SQRT_HALF,
                eps=1e-6, groups=norm_groups(c_out),
            )  # fmt: skip
        return h


@dataclass(frozen=True)
class DhariwalUNetConfig(EDMConfig):
    """Shape of a slimmable ADM U-Net as EDM trains it.

    Args:
        image_size: side of the square images in pixels, divisible by 2 ** (levels - 1).
        image_channels: channels of the images.
        ch: channels of the time embedding, and of the first level at full width times its multiple.
        ch_mult: per level, its channels as a multiple of `ch`.
        attn: levels (0 is the full resolution) with self-attention after each residual block.
        num_res_blocks: residual blocks a level on the way down; one more on the way up.
        dropout: dropout probability inside residual blocks.
        groups: slices of which a width keeps some; divides the groups of every norm.
        head_channels: channels of an attention head; None means one head over all channels.
        num_classes: labels of a class-conditional network; `num_classes` itself means no class.
            None: unconditional.
        augment_channels: numbers that tell how an image was augmented; None: it is not told.
        widths: widths to train and search, descending; any other in (0, 1] runs too.
        family: by which a file of settings tells it from other families.

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
    num_classes: int | None = None
    augment_channels: int | None = None
    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    family: str = "dhariwal-unet"

    def __post_init__(self) -> None:
        self._check_edm()
        self._check_choice("family", ("dhariwal-unet",))
        super().__post_init__()

    def describe(self) -> Graph:
        """Return the network."""
        g = Graph(self.image_size)
        x, c, label = g.input("x", self.image_channels, image=True), 4 * self.ch, None
        if self.num_classes is not None:
            label = g.embed("label_embedding", g.input("y"), self.num_classes + 1, c)
        time = g.sinusoid("time_embedding.table", g.input("t"), self.ch, halves=True)
        time = self._augment(g, time)
        time = g.linear("time_embedding.linear1", time, c, silu=True)
        time = g.linear("time_embedding.linear2", time, c, silu=True, shift=label)

        def residual(name: str, x: tuple[Node, ...], c: int, attention: bool) -> Node:
            return self._residual(g, name, x, time, c, attention=attention)

        def resample(name: str, h: Node, resample: Resampling) -> Node:
            return self._residual(g, name, (h,), time, h.out.c_max, resample=resample)

        channels = [self.ch * mult for mult in self.ch_mult]
        h = g.conv("head", x, channels[0])
        h = u_shape(h, channels, self.num_res_blocks, self.attn, residual, resample)
        h = self._norm(g, "tail.norm", h, 1e-5)
        g.conv("tail.conv", h, self.image_channels, role="fixed", gain=0.0)
        return g

    def _residual(
        self,
        g: Graph,
        name: str,
        x: tuple[Node, ...],
        time: Node,
        c_out: int,
        *,
        resample: Resampling | None = None,
        attention: bool = False,
    ) -> Node:
        """h = conv2(drop(silu(norm2(conv1(resample(silu(norm1(x))))) modulated by time)) + x."""
        h = self._norm(g, f"{name}.norm1", x, 1e-5)
        film = g.linear(f"{name}.time", time, c_out, parts=("scale", "shift"))
        h = g.conv(f"{name}.conv1", h, c_out, resample=resample)
        h = self._norm(g, f"{name}.norm2", h, 1e-5, modulate=film)
        h = g.dropout(f"{name}.dropout", h, self.dropout)
        shortcut = x[0]
        if len(x) > 1 or x[0].out.c_max != c_out:
            shortcut = g.conv(f"{name}.shortcut", x, c_out, 1)
        elif resample is not None:
            shortcut = g.resample(f"{name}.resample", x[0], resample)
        h = g.conv(f"{name}.conv2", h, c_out, residual=shortcut, gain=0.0)
        if attention:
            h = self_attention(
                g, f"{name}.attention", h, self.head_channels, 0.0, groups=norm_groups(c_out)
            )
        return h


PRESETS: dict[str, SongUNetConfig | DhariwalUNetConfig] = {
    # CIFAR-10, DDPM++ with the VP preconditioner: 55.73 M parameters.
    "edm-cifar10-vp": SongUNetConfig(image_size=32),
    # CIFAR-10, NCSN++ with the VE preconditioner: 56.40 M.
    "edm-cifar10-ve": SongUNetConfig(
        image_size=32, time_mult=2, fourier=True, aux_residual=True, taps=4
    ),
    # FFHQ and AFHQv2 at 64x64, DDPM++: 61.81 M. EDM's dropout is .05 on FFHQ, .25 on AFHQv2.
    "edm-ffhq64": SongUNetConfig(image_size=64, ch_mult=(1, 2, 2, 2), attn=(2,), dropout=0.05),
    # Class-conditional ImageNet at 64x64, ADM's network: 295.90 M.
    "edm-imagenet64": DhariwalUNetConfig(image_size=64, num_classes=1000),
}
