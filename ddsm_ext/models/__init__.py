"""Families of networks, and the modules that are built from their descriptions."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "FAMILIES": "families",
        "PRESETS": "families",
        "ADMConfig": "adm",
        "DenseNetwork": "dense",
        "DhariwalUNetConfig": "edm",
        "SlimmableNetwork": "network",
        "SlimmableUNet": "network",
        "SongUNetConfig": "edm",
        "UNetConfig": "unet",
        "preset": "families",
    },
)
