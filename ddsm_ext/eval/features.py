"""Feature extractors by name: uint8 images in, feature rows and a digest of their source out.

Inception's is torch-fidelity's (the `metrics` extra), EfficientNet-Lite0's weights are a package of
their own (the `features` extra).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ddsm_ext.eval.classifier import load_classifier
from ddsm_ext.eval.efficientnet_lite import (
    LAYER_CHANNELS,
    WEIGHTS_SHA256,
    EfficientNetLite0,
    read_weights,
    weights_path,
)
from ddsm_ext.eval.fidelity import import_torch_fidelity
from ddsm_ext.io.files import read_bytes
from ddsm_ext.io.weights import load_torch
from ddsm_ext.settings import Refusal, TypeRefusal, check_choice

DIGITS_CLASSIFIER_FILE = Path(__file__).with_name("digits_classifier.safetensors")
_BATCH_IMAGES = 512
_EFFICIENTNET = re.compile(r"efficientnet-lite0(:(?P<layer>\w+))?(@(?P<size>\d{1,4}))?")
_EFFICIENTNET_SIZE = 224  # that of its training
_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


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
        x = _checked_images(images, self.name)  # [N, C, H, W]
        shape = (config.image_channels, config.image_size, config.image_size)
        if tuple(x.shape[1:]) != shape:
            raise Refusal(
                f"{self.name}: images have shape {tuple(x.shape)}; need [N, {shape[0]}, "
                f"{shape[1]}, {shape[2]}], the size the classifier was trained on"
            )
        return _chunked(self._network.features, x, self.dim, self.device)


class InceptionExtractor:
    """torch-fidelity's InceptionV3, pooled features [N, 2048]; what FID and KID are defined on.

    torch-fidelity unpickles a weights file without restrictions. Here the file is read with
    `weights_only=True`, and torch-fidelity is handed a buffer that this class wrote itself.

    Args:
        path: weights-inception-2015-12-05-6726825d.pth, or a state dict of equal shapes.
        device: where to compute.

    Raises:
        FileNotFoundError: no such file.
        ImportError: torch-fidelity is not installed.
        ValueError: the file holds something else.
    """

    name = "inception-v3"
    dim = 2048

    def __init__(self, path: Path, device: str | torch.device) -> None:
        data = read_bytes(path, f"file {_WEIGHTS} of torch-fidelity")
        import_torch_fidelity()
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        buffer = io.BytesIO()
        torch.save(_state_dict(path, data), buffer)
        buffer.seek(0)
        try:
            network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", [str(self.dim)], feature_extractor_weights_path=buffer
            )
        except RuntimeError as error:
            raise Refusal(
                f"inception weights {path}: the names or shapes are not those of torch-fidelity's "
                f"InceptionV3; need {_WEIGHTS}"
            ) from error
        self.digest = hashlib.sha256(data).hexdigest()
        self.device = torch.device(device)
        self._network = network.to(self.device)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits [N, 1008] of features [N, 2048], without the bias, as the score asks.

        Source: Salimans et al., arXiv 1606.03498, whose code left the bias out.
        """
        return features.to(self.device) @ self._network.fc.weight.T

    def __call__(self, images: Any) -> Tensor:
        """Return fp32 features [N, 2048] of uint8 images [N, 3 or 1, H, W]; grey is repeated.

        Raises:
            TypeError: images that are not uint8.
            ValueError: another number of channels.
        """
        x = _colour(_checked_images(images, self.name), self.name)  # [N, 3, H, W]
        return _chunked(lambda part: self._network(part)[0], x, self.dim, self.device)


class EfficientNetExtractor:
    """A layer of EfficientNet-Lite0, pooled over the pixels: ImageNet features without a download.

    Args:
        layer: one of LAYER_CHANNELS.
        input_size: side in pixels to which images are resized (bicubic, antialiased). On CIFAR-10 a
            logistic regression of 2000 images' head tells 69.7, 71.2, 71.4 and 71.2 % of 1000 test
            images right at 96, 128, 160 and 224 pixels, which take 3.4, 6.4, 10 and 26 ms an image
            on a core of an AMD EPYC: 128 serves images of 32.
        device: where to compute.

    Raises:
        ImportError: the weights' package is not installed.
        ValueError: an unknown layer, or a size below 32.
    """

    def __init__(self, layer: str, input_size: int, device: str | torch.device) -> None:
        check_choice("efficientnet-lite0: layer", layer, LAYER_CHANNELS)
        if input_size < 32:
            raise Refusal(f"efficientnet-lite0: input size is {input_size}; need 32 or more")
        self.layer, self.input_size = layer, input_size
        self.dim = LAYER_CHANNELS[layer]
        self.name = _efficientnet_name(layer, input_size)
        self.device = torch.device(device)
        self._network = EfficientNetLite0(read_weights(weights_path()), self.device)
        about = f"{WEIGHTS_SHA256} {layer} {input_size} bicubic"
        self.digest = hashlib.sha256(about.encode()).hexdigest()
        # Activations of more images leave the cache: 24 ms an image in batches of 32, 19 of 16.
        self._batch_images = max(1, 16 * 224**2 // input_size**2)

    def __call__(self, images: Any) -> Tensor:
        """Return fp32 features [N, dim] of uint8 images [N, 3 or 1, H, W]; grey is repeated.

        Raises:
            TypeError: images that are not uint8.
            ValueError: another number of channels.
        """
        x = _colour(_checked_images(images, self.name), self.name)  # [N, 3, H, W]
        return _chunked(self._features, x, self.dim, self.device, self._batch_images)

    def _features(self, images: Tensor) -> Tensor:
        return self._network.pooled(_resized(images, self.input_size), self.layer)


def _efficientnet_name(layer: str, input_size: int) -> str:
    name = "efficientnet-lite0" + ("" if layer == "head" else f":{layer}")
    return name + ("" if input_size == _EFFICIENTNET_SIZE else f"@{input_size}")


def _resized(images: Tensor, size: int) -> Tensor:
    """Return uint8 images [N, C, H, W] as float [N, C, size, size] from 0 to 255."""
    x = images.float()
    if x.shape[2:] == (size, size):
        return x
    x = F.interpolate(x, (size, size), mode="bicubic", align_corners=False, antialias=True)
    return x.clamp(0, 255)  # bicubic weights overshoot at edges


def make_extractor(name: str, device: str | torch.device = "cpu") -> Extractor:
    """Return a feature extractor by name.

    Args:
        name: 'digits-classifier' (stored with the package, 8x8 grey digits),
            'classifier:<path>' (a file of `train_classifier` and `save_classifier`),
            'inception:<path>' (torch-fidelity's InceptionV3 weights file; extra `metrics`), or
            'efficientnet-lite0[:<layer>][@<size>]' (ImageNet features; extra `features`): the
            network's head, 1280 features of images resized to 224, or an earlier layer, such as
            reduction_4 (112) or reduction_5 (320), or another size, e.g.
            'efficientnet-lite0:reduction_5@128'.
        device: where to compute.

    Returns:
        An object with .name, .dim, .digest, called with uint8 [N, C, H, W] -> fp32 [N, dim].

    Raises:
        FileNotFoundError: the named file does not exist.
        ImportError: the extra is not installed.
        ValueError: an unknown name, or a file that holds something else.
    """
    kind, _, path = name.partition(":")
    if name == "digits-classifier":
        return ClassifierExtractor(DIGITS_CLASSIFIER_FILE, name, device)
    if kind == "classifier" and path:
        return ClassifierExtractor(Path(path), None, device)
    if kind == "inception" and path:
        return InceptionExtractor(Path(path), device)
    if found := _EFFICIENTNET.fullmatch(name):
        layer, size = found["layer"] or "head", int(found["size"] or _EFFICIENTNET_SIZE)
        return EfficientNetExtractor(layer, size, device)
    known = {
        "efficientnet-lite0": "efficientnet-lite0[:<layer>][@<size>]",
        "digits-classifier": "digits-classifier",
        "classifier": "classifier:<path>",
        "inception": "inception:<path> of weights-inception-2015-12-05-6726825d.pth",
    }
    close = difflib.get_close_matches(kind, known, n=1, cutoff=0.5)
    meant = f", did you mean {known[close[0]]}" if close else ""
    raise Refusal(
        f"feature extractor {name!r} is unknown{meant}; need one of {', '.join(known.values())}"
    )


def _checked_images(images: Any, caller: str) -> Tensor:
    """Return images as a uint8 tensor [N, C, H, W], or raise TypeError or ValueError."""
    x = images if isinstance(images, Tensor) else torch.as_tensor(images, device="cpu")
    if x.dtype != torch.uint8:
        raise TypeRefusal(
            f"{caller}: images are {x.dtype}; need uint8 (data.to_uint8 converts [-1, 1])"
        )
    if x.ndim != 4:
        raise Refusal(f"{caller}: images have shape {tuple(x.shape)}; need [N, C, H, W]")
    return x


def _colour(images: Tensor, caller: str) -> Tensor:
    """Return images [N, 1 or 3, H, W] as [N, 3, H, W], or raise ValueError."""
    if images.shape[1] not in (1, 3):
        raise Refusal(f"{caller}: images have shape {tuple(images.shape)}; need [N, 1 or 3, H, W]")
    return images.expand(-1, 3, -1, -1)


@torch.no_grad()
def _chunked(
    function: Callable[[Tensor], Tensor],
    images: Tensor,
    dim: int,
    device: torch.device,
    batch: int = _BATCH_IMAGES,
) -> Tensor:
    """Apply a function to at most `batch` images at a time, so that memory stays bounded."""
    rows = [function(part.to(device)).float() for part in images.split(batch) if len(part)]
    return (
        torch.cat(rows) if rows else torch.empty(0, dim, dtype=torch.float32, device=device)
    )  # [N, D]


def _state_dict(path: Path, data: bytes) -> dict[str, Tensor]:
    state = load_torch(io.BytesIO(data), f"inception weights {path}")
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise Refusal(f"inception weights {path}: it holds no tensors by name; need {_WEIGHTS}")
    return {name: value.detach().clone() for name, value in state.items()}
