"""Frozen settings of an autoencoder and its training; no torch, so that `--dry-run` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ddsm_ext.settings import Refusal, is_int, is_number
from ddsm_ext.training.loop_config import LoopConfig

_LARGEST_CHANNELS = 8192


@dataclass(frozen=True)
class AutoencoderConfig(LoopConfig):
    """A KL autoencoder, diffusers' AutoencoderKL, and how it is trained.

    Source: Rombach et al. 2022 (arXiv 2112.10752), appendix G.
    """

    anew: ClassVar[str] = "another --out"
    longer: ClassVar[str] = anew

    # Channels of each resolution; between two of them it is halved: of 3, a latent has H / 4
    block_out_channels: tuple[int, ...] = (32, 64, 64)
    layers_per_block: int = 1  # residual blocks a resolution; the decoder has one more
    latent_channels: int = 4
    norm_groups: int = 16  # of each group norm
    attention: bool = False  # between the two residual blocks of the lowest resolution
    kl_weight: float = 1e-6  # of the divergence from N(0, 1), in the sums over an image

    steps: int = 3000
    batch_size: int = 16
    lr: float = 3e-3  # on small photographs .56 dB better than 1e-3 (docs/latent-and-diffusers.md)
    lr_final: float = 0.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers_per_block", "latent_channels", "norm_groups"):
            self._check_int(name, 1)
        self._check_type("attention", isinstance(self.attention, bool), "true or false")
        self._check("kl_weight", is_number(self.kl_weight, 0), "a number >= 0")
        channels = self.block_out_channels
        listed = isinstance(channels, tuple) and len(channels) in (2, 3, 4)
        whole = listed and all(is_int(c, 1) and c <= _LARGEST_CHANNELS for c in channels)
        need = f"2, 3 or 4 whole numbers from 1 to {_LARGEST_CHANNELS}: factors of 2, 4 and 8"
        self._check("block_out_channels", whole, need)
        for c in channels:
            if c % self.norm_groups:
                raise Refusal(
                    f"AutoencoderConfig: block_out_channels has {c} with norm_groups "
                    f"{self.norm_groups}; need multiples of it"
                )

    @property
    def factor(self) -> int:
        """Pixels along the side of a latent's."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def check_size(self, image_size: int) -> None:
        """Refuse images whose side is no multiple of `factor`.

        Args:
            image_size: pixels a side.

        Raises:
            ValueError: it is none.
        """
        if image_size % self.factor:
            raise Refusal(
                f"AutoencoderConfig: images are {image_size}x{image_size} with "
                f"{len(self.block_out_channels)} block_out_channels, a factor of {self.factor}; "
                "need a multiple of it"
            )
