"""The U-Net of ADM (guided-diffusion) and improved DDPM, slimmable: configuration, description.

Source: Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3; Nichol
and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models".
"""

from __future__ import annotations

from dataclasses import dataclass

from ddsm_ext.graph.graph import Graph
from ddsm_ext.graph.node import Node, Resampling
from ddsm_ext.models.unet import UShapeConfig, self_attention, u_shape
from ddsm_ext.settings import Refusal

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
        resample_blocks: residual blocks change the resolution; False: single convolutions do.
        num_classes: labels of a class-conditional network; None: unconditional.
        null_class: one label more, `num_classes`, stands for no class, as classifier-free guidance
            needs it.
        learned_sigma: predict a second set of channels, for the variance.
        widths: widths to train and search, descending; any other in (0, 1] runs too.
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
    resample_blocks: bool = True
    num_classes: int | None = None
    null_class: bool = False
    learned_sigma: bool = True
    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    family: str = "adm"

    def __post_init__(self) -> None:
        self._check_u_shape()
        for name in ("heads", "num_classes"):
            self._check_int(name, 1, 10**6, optional=True)
        time = f"a divisor of {4 * self.ch}, the channels of the time embedding"
        self._check("groups", 4 * self.ch % self.groups == 0, time)
        for name in ("scale_shift", "resample_blocks", "null_class", "learned_sigma"):
            self._check_type(name, isinstance(getattr(self, name), bool), "True or False")
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
        c, label = 4 * self.ch, None
        if self.num_classes is not None:
            rows = self.num_classes + self.null_class
            label = g.embed("label_embedding", g.input("y"), rows, c)
        time = g.sinusoid("time_embedding.table", t, self.ch, halves=True)
        time = g.linear("time_embedding.linear1", time, c, silu=True)
        # Each block's projection starts with SiLU: applied here once instead of in every block.
        time = g.linear("time_embedding.linear2", time, c, silu=True, shift=label)

        def residual(name: str, x: tuple[Node, ...], c: int, attention: bool) -> Node:
            return self._residual(g, name, x, time, c, attention=attention)

        def resample(name: str, h: Node, resample: Resampling) -> Node:
            return self._resample(g, name, h, time, resample)

        channels = [self.ch * mult for mult in self.ch_mult]
        h = g.conv("head", x, channels[0])
        h = u_shape(h, channels, self.num_res_blocks, self.attn, residual, resample)
        h = g.norm("tail.norm", h, silu=True)
        outputs = self.image_channels * (2 if self.learned_sigma else 1)
        g.conv("tail.conv", h, outputs, role="fixed", gain=ZERO)
        return g

    def _resample(self, g: Graph, name: str, h: Node, time: Node, resample: Resampling) -> Node:
        c = h.out.c_max
        if self.resample_blocks:
            return self._residual(g, name, (h,), time, c, resample=resample)
        if resample == "up":
            return g.conv(f"{name}.conv", h, c, resample="up")
        return g.conv(f"{name}.conv", h, c, stride=2)

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
        h = g.norm(f"{name}.norm1", x, silu=True)
        if self.scale_shift:
            film = g.linear(f"{name}.time", time, c_out, parts=("scale", "shift"))
            h = g.conv(f"{name}.conv1", h, c_out, resample=resample)
            h = g.norm(f"{name}.norm2", h, silu=True, modulate=film)
        else:
            shift = g.linear(f"{name}.time", time, c_out)
            h = g.conv(f"{name}.conv1", h, c_out, resample=resample, shift=shift)
            h = g.norm(f"{name}.norm2", h, silu=True)
        h = g.dropout(f"{name}.dropout", h, self.dropout)
        shortcut = x[0]
        if len(x) > 1 or x[0].out.c_max != c_out:
            shortcut = g.conv(f"{name}.shortcut", x, c_out, 1)
        elif resample is not None:
            shortcut = g.resample(f"{name}.resample", x[0], resample)
        h = g.conv(f"{name}.conv2", h, c_out, residual=shortcut, gain=ZERO)
        if attention:
            head = self.head_channels
            if self.heads is not None and self.heads > 1:  # a single head shrinks with its layer
                head = c_out // self.heads
            h = self_attention(g, f"{name}.attention", h, head, gain=ZERO)
        return h


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
}  # fmt: skip
