"""Steps of a described network made ready: plans of native calls on the CPU, graphs on CUDA."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"StepRunner": "runner", "serves": "runner"})
