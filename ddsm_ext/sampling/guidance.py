"""Guidance: a weak model beside the one that samples, and away from it. Imports no torch.

The weak model is the network with the label that stands for none (classifier-free guidance), at a
narrower width of its weights (autoguidance), or both.

Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6, with scale 1 + w; Karras et al. 2024 (arXiv
2406.02507); Kynkäänniemi et al. 2024 (arXiv 2404.07724) for the interval.
"""

from __future__ import annotations

from dataclasses import dataclass

from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal


@dataclass(frozen=True)
class Guidance:
    """What a network's output becomes: weak + scale (strong - weak).

    Args:
        scale: 1 leaves the strong output alone.
        interval: least and greatest log-SNR at which it is done; None: at all.
        widths: width of the weak model by noise level; None: the strong one's.
        null_label: label of the weak model; None: the image's own.

    Raises:
        ValueError: the weak model is the strong one.
    """

    scale: float
    interval: tuple[float, float] | None = None
    widths: Strategy | None = None
    null_label: int | None = None

    def __post_init__(self) -> None:
        if self.widths is None and self.null_label is None:
            raise Refusal(
                f"Guidance: scale is {self.scale} with the same label and width for the weak "
                "model; need a null label or widths of its own"
            )

    def weak_width(self, log_snr: float, width: float) -> float | None:
        """Return the width of the weak model beside a strong one; None: it is not run.

        Args:
            log_snr: noise level.
            width: of the strong model there.
        """
        low, high = self.interval or (log_snr, log_snr)
        if self.scale == 1.0 or not low <= log_snr <= high:
            return None
        weak = width if self.widths is None else self.widths.width_at(log_snr)
        return None if weak == width and self.null_label is None else weak
