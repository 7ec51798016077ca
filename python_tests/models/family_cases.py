"""Small networks of every family and kind of layer, and what they are called with."""

from __future__ import annotations

import dataclasses

import torch
from models import network_cases
from torch import Tensor

from ddsm_ext.graph import NetworkConfig
from ddsm_ext.models import ADMConfig, DhariwalUNetConfig, SongUNetConfig, UNetConfig

ADM = ADMConfig(
    image_size=8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, dropout=0.0, groups=8,
    head_channels=8, num_classes=5,
)  # fmt: skip
ADM_PLAIN = dataclasses.replace(
    ADM, scale_shift=False, resample_blocks=False, num_classes=None, learned_sigma=False
)
SONG = SongUNetConfig(
    image_size=8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, dropout=0.0, groups=4
)
NCSN = dataclasses.replace(SONG, time_mult=2, fourier=True, aux_residual=True, taps=4)
DHARIWAL = DhariwalUNetConfig(
    image_size=8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, dropout=0.0, groups=4,
    head_channels=8, num_classes=5,
)  # fmt: skip
UNETS = {f"unet-{name}": config for name, config in network_cases.CONFIGS.items()}
ADMS = {
    "adm": ADM,
    "adm-plain": ADM_PLAIN,
    "adm-iddpm": dataclasses.replace(ADM, resample_blocks=False, head_channels=None, heads=2),
    "adm-one-head": dataclasses.replace(ADM, head_channels=None, heads=1),
    "adm-levels": dataclasses.replace(ADM, ch_mult=(1, 2, 3), attn=(0, 1, 2), image_channels=1),
    "adm-narrowing": dataclasses.replace(ADM_PLAIN, ch_mult=(3, 1), resample_blocks=True, attn=()),
    # 48 channels hold six of these heads, and no width but 1, 2/3 and 1/3 a whole number of them.
    "adm-uneven": dataclasses.replace(ADM, ch=24, attn=(0, 1), num_classes=None),
}
LDM = dataclasses.replace(ADM_PLAIN, context_channels=6)
LDMS = {
    "ldm": dataclasses.replace(LDM, num_classes=5),
    "ldm-context": dataclasses.replace(LDM, attn=(0, 1), transformer_depth=2, context_tokens=3),
    "ldm-one-head": dataclasses.replace(LDM, head_channels=None, heads=1, num_classes=5),
    # As 24 channels are three such heads, widths keep other counts of heads than of channels.
    "ldm-uneven": dataclasses.replace(LDM, ch=24, attn=(0, 1), context_tokens=2),
    "unet2d": dataclasses.replace(
        ADM, resample_blocks=(True, False), norm_middle=False, attn=(0,), attn_up=(1,), time_ch=8,
        eps=1e-6, freq_shift=1.0, sines_first=True,
    ),
    "unet2d-plain": dataclasses.replace(
        ADM_PLAIN, ch_mult=(2, 3, 3), attn=(), attn_middle=False,
    ),
}  # fmt: skip
EDMS: dict[str, SongUNetConfig | DhariwalUNetConfig] = {
    "ddpm++": SONG,
    "ddpm++-labels": dataclasses.replace(SONG, num_classes=5),
    "ddpm++-untold": dataclasses.replace(SONG, augment_channels=None, taps=4),
    "ddpm++-heads": dataclasses.replace(SONG, head_channels=8, attn=(0, 1)),
    "ncsn++": dataclasses.replace(NCSN, num_classes=5),
    "ncsn++-levels": dataclasses.replace(
        NCSN, ch_mult=(2, 1, 2), num_res_blocks=2, image_channels=1
    ),
    "dhariwal": DHARIWAL,
    "dhariwal-told": dataclasses.replace(DHARIWAL, num_classes=None, augment_channels=9),
}
CONFIGS: dict[str, NetworkConfig] = {**UNETS, **ADMS, **LDMS, **EDMS}
# One of each family, with all that it can be told.
FAMILIES = ("unet-source", "adm", "ldm", "ldm-context", "ncsn++", "dhariwal")


def inputs(config: NetworkConfig, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Three images, their times and labels, the last of which is the greatest there is."""
    generator = torch.Generator().manual_seed(2)
    side = config.image_size
    x = torch.randn(3, config.image_channels, side, side, generator=generator, dtype=dtype)
    edm = isinstance(config, SongUNetConfig | DhariwalUNetConfig)
    t = torch.tensor([-1.7, 0.25, 1.1] if edm else [0.0, 7.25, 40.0])
    null = config.null_label
    last = config.label_count - 1 if null is None else null
    given = {"x": x, "t": t}
    if config.label_count:
        given["y"] = torch.tensor([0, 4, last])
    if "context" in config.graph.inputs:
        node = config.graph.inputs["context"]
        shape = (3, node.tokens or 1, node.out.c_max)
        given["context"] = torch.randn(shape, generator=generator, dtype=dtype)
    return given


def augmented(config: NetworkConfig, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The inputs and, where the network takes them, how the images were augmented."""
    if not config.augment_count:
        return inputs(config, dtype)
    generator = torch.Generator().manual_seed(3)
    augment = torch.randn(3, config.augment_count, generator=generator, dtype=dtype)
    return {**inputs(config, dtype), "augment": augment}


def widths_of(config: NetworkConfig) -> tuple[float, ...]:
    """Widths that it runs at: any, or with a fixed number of groups its own."""
    return (
        network_cases.usable(config) if isinstance(config, UNetConfig) else network_cases.ANY_WIDTHS
    )
