"""Networks small enough to time in tests."""

from __future__ import annotations

from ddsm_ext.models import ADMConfig, SongUNetConfig, UNetConfig

# Sliced as the reference code slices.
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
# Scale-shift norms, halved and enlarged images, labels, several heads.
ADM = ADMConfig(
    image_size=8,
    ch=32,
    ch_mult=(1, 2),
    attn=(1,),
    num_res_blocks=1,
    dropout=0.0,
    groups=16,
    head_channels=16,
    num_classes=5,
)
# Transformers, which labels are a context of.
LDM = ADMConfig(
    image_size=8,
    ch=32,
    ch_mult=(1, 2),
    attn=(1,),
    num_res_blocks=1,
    dropout=0.0,
    groups=16,
    head_channels=16,
    scale_shift=False,
    resample_blocks=False,
    learned_sigma=False,
    context_channels=24,
    num_classes=5,
    null_class=True,
)
# Sums times a factor, filters, a ring, random frequencies, labels added to them.
NCSN = SongUNetConfig(
    image_size=8,
    ch=32,
    ch_mult=(1, 2),
    attn=(1,),
    num_res_blocks=1,
    dropout=0.0,
    groups=8,
    time_mult=2,
    fourier=True,
    aux_residual=True,
    taps=4,
    num_classes=5,
)
