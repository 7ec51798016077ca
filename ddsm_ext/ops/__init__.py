"""Ops that compute with a channel prefix of a larger weight, without copying it."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "sliced_attention": "attention",
        "sliced_attention_ref": "attention",
        "sliced_conv2d": "conv2d",
        "sliced_conv2d_ref": "conv2d",
        "sliced_group_norm": "group_norm",
        "sliced_group_norm_ref": "group_norm",
        "sliced_linear": "linear",
        "sliced_linear_ref": "linear",
    },
)
