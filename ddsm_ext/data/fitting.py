"""Brings images to one size and number of channels, and stacks them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddsm_ext.data.config import DataConfig
from ddsm_ext.settings import Refusal


def fit(pixels: NDArray[np.uint8], size: int | None, channels: int | None) -> NDArray[np.uint8]:
    """Crop to the central square, resize, and convert the channels of one image.

    Args:
        pixels: uint8 [H, W, 1 or 3].
        size: pixels a side of the result; None keeps height and width.
        channels: 1 or 3; None keeps them.

    Returns:
        uint8 [C, H, W].
    """
    height, width, depth = pixels.shape
    if size is not None and (height, width) != (size, size):
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = pixels[top : top + side, left : left + side]
        image = Image.fromarray(square[:, :, 0] if depth == 1 else np.ascontiguousarray(square))
        kernel = Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC
        pixels = np.asarray(image.resize((size, size), kernel)).reshape(size, size, depth)
    if channels == 1 and depth == 3:
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
    elif channels == 3 and depth == 1:
        pixels = pixels.repeat(3, axis=2)
    return pixels.transpose(2, 0, 1)  # [C, H, W]


class Fitting:
    """Fits images one by one, and refuses one that then is not like the first.

    Args:
        source: what errors call their source.
        config: size and channels.
    """

    def __init__(self, source: str, config: DataConfig) -> None:
        self._source, self._config = source, config
        self.shape: tuple[int, int, int] | None = None  # (C, H, W); None: no image yet
        self._first = ""

    def __call__(self, pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
        """Return an image [H, W, 1 or 3] as uint8 [C, H, W]; `name` is what errors call it.

        Raises:
            ValueError: it is not like the first.
        """
        image = fit(pixels, self._config.image_size, self._config.channels)
        if self.shape is None:
            channels, height, width = image.shape
            self.shape, self._first = (channels, height, width), name
        if image.shape != self.shape:
            raise Refusal(
                f"{self._source}: {name} is {list(image.shape)}, {self._first} is "
                f"{list(self.shape)} (channels, height, width); need equal images, or image_size "
                "and channels set"
            )
        return image

    def check(self) -> tuple[int, int, int]:
        """Return (C, H, W) of the images.

        Raises:
            ValueError: there was none, or they are no squares.
        """
        if self.shape is None:
            raise Refusal(f"{self._source}: no image in this split; need at least one")
        _, height, width = self.shape
        if height != width:
            raise Refusal(
                f"{self._source}: images are {height}x{width}; need squares, or image_size set"
            )
        return self.shape


class Stack:
    """Grows one flat buffer image by image, so that nothing is held twice.

    Args:
        source, config: as of `Fitting`.
    """

    def __init__(self, source: str, config: DataConfig) -> None:
        self._fitting, self._data = Fitting(source, config), bytearray()

    def add(self, pixels: NDArray[np.uint8], name: str) -> None:
        """Take an image; see `Fitting`."""
        self._data += self._fitting(pixels, name).tobytes()

    def array(self) -> NDArray[np.uint8]:
        """Return them all, uint8 [N, C, H, W].

        Raises:
            ValueError: there is none, or they are no squares.
        """
        return np.frombuffer(self._data, np.uint8).reshape(-1, *self._fitting.check())
