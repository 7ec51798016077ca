"""Feature extractors by name: uint8 images in, feature rows and a digest of their source out."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ddsm_ext.eval.classifier import load_classifier
from ddsm_ext.settings import Refusal, TypeRefusal

DIGITS_CLASSIFIER_FILE = Path(__file__).with_name("digits_classifier.safetensors")
_BATCH_IMAGES = 512


class Extractor(Protocol):
    """What the metrics need of an extractor; anything with these members serves."""

    name: str
    dim: int
    digest: str

    def __call__(self, images: Any) -> Tensor:
        """Return fp32 features [N, dim] of uint8 images [N, C, H, W]."""


class ClassifierExtractor:
    """The last hidden layer of a SmallClassifier.

    Args:
        path: a file of `save_classifier`.
        name: name to print beside a score; None makes one of the data's name and the digest.
        device: where to compute.
    """

    def __init__(self, path: Path, name: str | None, device: str | torch.device) -> None:
        trained, self.digest = load_classifier(path)
        self.name = name or f"classifier-{trained.data_name}-{self.digest[:8]}"
        self.dim = trained.config.features
        self.held_out_accuracy = trained.held_out_accuracy
        self.device = torch.device(device)
        self._network = trained.network.to(self.device)

    def __call__(self, images: Any) -> Tensor:
        """Return fp32 features [N, dim] of images.

        Args:
            images: uint8 tensor or array [N, C, H, W] of the classifier's own size.

        Raises:
            TypeError: images that are not uint8.
            ValueError: another shape.
        """
        config = self._network.config
        x = checked_images(images, self.name)  # [N, C, H, W]
        shape = (config.image_channels, config.image_size, config.image_size)
        if tuple(x.shape[1:]) != shape:
            raise Refusal(
                f"{self.name}: images have shape {tuple(x.shape)}; need [N, {shape[0]}, "
                f"{shape[1]}, {shape[2]}], the size the classifier was trained on"
            )
        return chunked(self._network.features, x, self.dim, self.device)


def make_extractor(name: str, device: str | torch.device = "cpu") -> Extractor:
    """Return a feature extractor by name.

    Args:
        name: 'digits-classifier' (stored with the package, 8x8 grey digits),
            'classifier:<path>' (a file of `train_classifier` and `save_classifier`), or
            'inception:<path>' (torch-fidelity's InceptionV3 weights file; extra `metrics`).
        device: where to compute.

    Returns:
        An object with .name, .dim, .digest, called with uint8 [N, C, H, W] -> fp32 [N, dim].

    Raises:
        FileNotFoundError: the named file does not exist.
        ValueError: an unknown name, or a file that holds something else.
    """
    kind, _, path = name.partition(":")
    if name == "digits-classifier":
        return ClassifierExtractor(DIGITS_CLASSIFIER_FILE, name, device)
    if kind == "classifier" and path:
        return ClassifierExtractor(Path(path), None, device)
    if kind == "inception" and path:
        from ddsm_ext.eval.torch_fidelity import InceptionExtractor

        return InceptionExtractor(Path(path), device)
    known = {
        "digits-classifier": "digits-classifier",
        "classifier": "classifier:<path>",
        "inception": "inception:<path> of weights-inception-2015-12-05-6726825d.pth",
    }
    close = difflib.get_close_matches(kind, known, n=1, cutoff=0.5)
    meant = f", did you mean {known[close[0]]}" if close else ""
    raise Refusal(
        f"feature extractor {name!r} is unknown{meant}; need one of {', '.join(known.values())}"
    )


def checked_images(images: Any, caller: str) -> Tensor:
    """Return images as a uint8 tensor [N, C, H, W], or raise TypeError or ValueError."""
    x = torch.as_tensor(images)
    if x.dtype != torch.uint8:
        raise TypeRefusal(
            f"{caller}: images are {x.dtype}; need uint8 (data.to_uint8 converts [-1, 1])"
        )
    if x.ndim != 4:
        raise Refusal(f"{caller}: images have shape {tuple(x.shape)}; need [N, C, H, W]")
    return x


@torch.no_grad()
def chunked(
    function: Callable[[Tensor], Tensor], images: Tensor, dim: int, device: torch.device
) -> Tensor:
    """Apply a function to at most 512 images at a time, so that memory stays bounded."""
    rows = [function(part.to(device)).float() for part in images.split(_BATCH_IMAGES) if len(part)]
    return torch.cat(rows) if rows else torch.empty(0, dim, device=device)  # [N, D]
