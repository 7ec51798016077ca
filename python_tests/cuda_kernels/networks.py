"""Small networks whose steps are checked, of each family and way to slice."""

from __future__ import annotations

from dataclasses import replace

from graph.descriptions import Described, halved_at_the_end
from models import network_cases

from ddsm_ext.models import ADMConfig, DhariwalUNetConfig, SongUNetConfig

_ADM = ADMConfig(
    image_size=8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=8, dropout=0.0,
    head_channels=8, num_classes=5,
)  # fmt: skip
_SONG = SongUNetConfig(
    image_size=8, ch=32, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=8, dropout=0.0
)
CONFIGS = {
    **{name: network_cases.CONFIGS[name] for name in ("source", "prefix", "heads", "reference")},
    "adm": _ADM,
    # Of improved DDPM: the embedding is added, single convolutions resample.
    "adm-plain": replace(_ADM, scale_shift=False, resample_blocks=False, num_classes=None),
    "padded-at-the-end": Described(halved_at_the_end),
    "ddpm++": _SONG,
    "ncsn++": replace(_SONG, time_mult=2, fourier=True, aux_residual=True, taps=4, num_classes=5),
    "edm-adm": DhariwalUNetConfig(
        image_size=8, ch=32, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=8, dropout=0.0,
        head_channels=16, num_classes=5,
    ),
}  # fmt: skip
