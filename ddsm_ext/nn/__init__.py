"""Layers and blocks whose active channel counts are forward arguments, never module state."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "AttentionBlock": "blocks",
        "OutputBlock": "blocks",
        "ResampleBlock": "blocks",
        "ResidualBlock": "blocks",
        "SlicedConv2d": "layers",
        "SlicedGroupNorm": "layers",
        "SlicedLinear": "layers",
        "TimeEmbedding": "embedding",
        "sinusoidal_embedding": "sinusoidal",
    },
)
