"""Timing of the ops and of whole network steps against PyTorch slicing and dense weights."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Setting": "conditions",
        "format_result": "table",
        "format_table": "table",
        "interleaved": "timing",
        "run_ops": "ops",
        "run_training_step": "training_step",
        "run_unet_step": "unet_step",
        "run_width_curve": "width_curve",
    },
)
