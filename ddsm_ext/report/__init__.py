"""Figures and the self-contained HTML page of a run folder."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"build_report": "page"})
