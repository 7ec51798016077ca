"""Denoising Diffusion Step-aware Models, with kernels that compute any width of one network."""

from ddsm_ext._lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ADMConfig": "models",
        "SlimmableNetwork": "models",
        "SlimmableUNet": "models",
        "Strategy": "sampling",
        "UNetConfig": "models",
        "_native": "_library",  # which finds it, where it lies elsewhere
        "ops": "ops",
        "weights_changed": "ops",
    },
    # Needs an extra; and what diffusers asks for beside a class of ours that it loads.
    unlisted={
        "ModelMixin": "compat.slimmable_unet2d",
        "SlimmableUNet2D": "compat.slimmable_unet2d",
    },
)
