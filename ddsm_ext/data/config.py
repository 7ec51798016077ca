"""Frozen settings of the images, and of what a network has of them: pixels or latents; no torch, so
that `--dry-run` is quick."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ddsm_ext.settings import LARGEST_IMAGE, Refusal, Settings, is_number

_MOST_PIXELS = 178_956_970  # Pillow decodes no larger image


@dataclass(frozen=True)
class DataConfig(Settings):
    """Which images, and how they become [C, image_size, image_size] uint8."""

    # "digits", or a path: folder, ZIP or tar of images, binary CIFAR-10, .npz of samples; or the
    # folder of latents that `ddsm encode` made
    source: str = "digits"
    image_size: int | None = None  # pixels a side; None: as in the source (all must agree)
    channels: int | None = None  # 1 or 3; None: as in the source
    split: str = "train"  # "train", "test" or "all"
    held_out: float = 0.0  # fraction kept for "test" where the source has no test part of its own
    split_seed: int = 0  # which images are held out
    # random horizontal flips; None: all but digits, and latents that have those of mirrored images
    flip: bool | None = None
    limit: int | None = None  # random sub-set of so many, drawn by split_seed; None: all
    cache: str | None = None  # folder of decoded images, named by content; None: decode every time
    background: int = 255  # grey level that transparent pixels are laid on: 0 black, 255 white
    skip_damaged: int = 0  # damaged images that are passed over, each with a warning; more: refused
    max_pixels: int = 1 << 26  # width x height of an image in a file; a larger one is refused

    def __post_init__(self) -> None:
        for name in ("source", "cache"):  # a Path is kept as text, which JSON has
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        self._check("source", isinstance(self.source, str) and bool(self.source), "a name or path")
        self._check_int("image_size", 4, LARGEST_IMAGE, optional=True)
        self._check("channels", self.channels in (None, 1, 3), "None, 1 or 3")
        self._check_choice("split", ("train", "test", "all"))
        self._check("held_out", is_number(self.held_out, 0, 0.9), "a fraction from 0 to 0.9")
        self._check_int("split_seed", 0)
        self._check("flip", self.flip in (None, True, False), "None, True or False")
        self._check_int("limit", 1, optional=True)
        self._check("cache", self.cache is None or isinstance(self.cache, str), "None or a path")
        self._check_int("background", 0, 255)
        self._check_int("skip_damaged", 0)
        self._check_int("max_pixels", 1, _MOST_PIXELS)

    @property
    def flips(self) -> bool:
        """Whether training mirrors images: digits read differently in a mirror, photographs not."""
        return self.source != "digits" if self.flip is None else self.flip


KINDS = ("pixels", "kl", "vq")
# Settings of a codec that say where things lie and how many run together: they decide no weight.
CODEC_PLACES = ("folder", "images", "batch_size")


@dataclass(frozen=True)
class CodecConfig(Settings):
    """What a network's images are: pixels, or latents of an autoencoder, as their archive says.

    Args:
        kind: "pixels", or the autoencoder's: "kl" (diffusers' AutoencoderKL) or "vq" (VQModel).
        folder: where the autoencoder lies.
        digest: SHA-256 of the autoencoder; see `data.codec.Codec`.
        scale: the network has (z - shift) * scale of a latent z.
        shift: see there.
        factor: pixels of an image along a latent's side.
        image_channels: of the images; None: the network's.
        decode_macs: MACs of decoding an image.
        batch_size: images that are decoded together.
        images: where the images lie that the latents are of, which samples are compared with; None:
            where they lay when they were encoded.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range.
    """

    kind: str = "pixels"
    folder: str | None = None
    digest: str | None = None
    scale: float = 1.0
    shift: float = 0.0
    factor: int = 1
    image_channels: int | None = None
    decode_macs: int = 0
    batch_size: int = 4
    images: str | None = None

    def __post_init__(self) -> None:
        self._check_choice("kind", KINDS)
        for name in ("folder", "digest", "images"):
            value = getattr(self, name)
            self._check_type(name, value is None or isinstance(value, str), "None or a text")
        self._check("scale", is_number(self.scale, 1e-6, 1e6), "a number from 1e-6 to 1e6")
        self._check("shift", is_number(self.shift, -1e6, 1e6), "a number from -1e6 to 1e6")
        self._check_int("factor", 1, 256)
        self._check("image_channels", self.image_channels in (None, 1, 3), "None, 1 or 3")
        self._check_int("decode_macs", 0)
        self._check_int("batch_size", 1)
        if self.of_latents and None in (self.folder, self.digest, self.image_channels):
            raise Refusal(
                f"CodecConfig: kind is {self.kind!r} without folder, digest or image_channels; "
                "need those of an archive that ddsm encode made, as data.source"
            )

    @property
    def of_latents(self) -> bool:
        """Whether the network's images are latents."""
        return self.kind != "pixels"

    @property
    def identity(self) -> dict[str, str | float | None]:
        """What weights of a network belong to, wherever things lie."""
        names = ("kind", "digest", "scale", "shift", "factor", "image_channels")
        return {name: getattr(self, name) for name in names}
