"""Ops that compute with a channel prefix of a larger weight, without copying it."""

from ddsm_ext._lazy import attach

# Functions that are called like their modules: loaded here, as a module that is imported later
# would take the name.
from ddsm_ext.ops.activation import activation as activation
from ddsm_ext.ops.packed_attention import packed_attention as packed_attention
from ddsm_ext.ops.resample import resample as resample

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "activation": "activation",
        "activation_ref": "activation",
        "embed_time": "embedding",
        "packed_attention": "packed_attention",
        "packed_attention_ref": "packed_attention",
        "resample": "resample",
        "resample_ref": "resample",
        "sinusoidal_embedding": "embedding",
        "sliced_attention": "attention",
        "sliced_attention_ref": "attention",
        "sliced_conv2d": "conv2d",
        "sliced_conv2d_ref": "conv2d",
        "sliced_embedding": "embedding",
        "sliced_embedding_ref": "embedding",
        "sliced_group_norm": "group_norm",
        "sliced_group_norm_ref": "group_norm",
        "sliced_layer_norm": "layer_norm",
        "sliced_layer_norm_ref": "layer_norm",
        "sliced_linear": "linear",
        "sliced_linear_ref": "linear",
        "weights_changed": "_weights",
    },
)
