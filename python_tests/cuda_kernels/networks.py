"""Small networks whose steps are checked, of each family and way to slice."""

from __future__ import annotations

from dataclasses import replace

from ddsm_ext.models import ADMConfig, UNetConfig

_SOURCE = UNetConfig(
    image_size=8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=8, dropout=0.0
)
_ADM = ADMConfig(
    image_size=8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=8, dropout=0.0,
    head_channels=8, num_classes=5,
)  # fmt: skip
CONFIGS = {
    "source": _SOURCE,
    "prefix": replace(_SOURCE, concat_slicing="prefix"),
    "heads": replace(_SOURCE, head_channels=8, attn=(0, 1)),
    "reference": replace(
        _SOURCE, norm="fixed_groups", concat_slicing="prefix", ch=32, widths=(1.0, 0.5),
        time_table_rows=50,
    ),
    "adm": _ADM,
    # Of improved DDPM: the embedding is added, single convolutions resample.
    "adm-plain": replace(_ADM, scale_shift=False, resample_blocks=False, num_classes=None),
}  # fmt: skip
