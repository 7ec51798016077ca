"""Networks: configurations and MAC counts (no torch), and the slimmable U-Net."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "PRESETS": "config",
        "DenseUNet": "dense",
        "SlimmableUNet": "unet",
        "UNetConfig": "config",
        "parameter_count": "macs",
        "preset": "config",
        "unet_macs": "macs",
    },
)
