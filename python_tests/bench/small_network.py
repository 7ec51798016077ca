"""A network small enough to time in tests, sliced as the reference code slices."""

from __future__ import annotations

from ddsm_ext.models import UNetConfig

SMALL = UNetConfig(
    image_size=8,
    ch=64,
    ch_mult=(1, 2),
    attn=(1,),
    num_res_blocks=1,
    groups=16,
    norm="fixed_groups",
    concat_slicing="prefix",
    time_table_rows=1000,
)
