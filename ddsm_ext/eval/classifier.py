"""A small image classifier whose last hidden layer serves as a feature extractor.

Inception's weights download at run time and know no 8x8 digits, so scores on small data sets use a
classifier trained on the data set itself; the score then carries the classifier's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddsm_ext.data.pixels import from_uint8
from ddsm_ext.io.digest import KEY, json_digest
from ddsm_ext.io.document import Document
from ddsm_ext.io.files import parse_json, read_bytes, write_atomic
from ddsm_ext.io.weights import parse_safetensors
from ddsm_ext.settings import (
    LARGEST_IMAGE,
    Refusal,
    Settings,
    TypeRefusal,
    is_int,
    is_number,
)

_METADATA_KEY = "ddsm_classifier"
_HELD_OUT_FRACTION = 0.2  # share of images, chosen by the seed, that training never sees
LEAST_IMAGES = round(1 / _HELD_OUT_FRACTION)  # of which one is held out


@dataclass(frozen=True)
class ClassifierConfig(Settings):
    """Shape of the network and recipe of its training.

    Args:
        image_size: height and width H = W of the images in pixels.
        image_channels: 1 or 3.
        classes: number of classes.
        channels: channels of the first stage; every further stage doubles them up to `features`.
        features: number of features D that the extractor returns.
        epochs, batch_images, lr, weight_decay, seed: the training (AdamW, cosine lr to zero).
    """

    image_size: int
    image_channels: int
    classes: int
    channels: int = 32
    features: int = 64
    epochs: int = 20
    batch_images: int = 64
    lr: float = 2e-3
    weight_decay: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        grey_or_rgb = is_int(self.image_channels) and self.image_channels in (1, 3)
        self._check("image_channels", grey_or_rgb, "1 or 3")
        self._check_int("image_size", 4, LARGEST_IMAGE)
        for name, low in (("classes", 2), ("channels", 1), ("features", 1)):
            self._check(name, is_int(getattr(self, name), low), f"an int >= {low}")
        self._check_int("epochs", 1, 10**5)
        self._check_int("batch_images", 1, 2**20)
        self._check_int("seed", 0)
        for name in ("lr", "weight_decay"):
            self._check(name, is_number(getattr(self, name), 0), "a number >= 0")


class SmallClassifier(nn.Module):
    """3x3 convolutions with ReLU, halving down to 4x4, global mean -> features -> logits.

    There is no batch normalisation, so a row depends on its own image only.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        c_in, c_out = config.image_channels, config.channels
        layers.append(nn.Conv2d(c_in, c_out, 3, padding=1, dtype=torch.float32))
        size = config.image_size
        while True:
            c_in, c_out = c_out, min(2 * c_out, config.features)
            conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, dtype=torch.float32)
            layers.append(conv)
            size = (size + 1) // 2
            if size <= 4:
                break
        layers.append(nn.Conv2d(c_out, config.features, 3, padding=1, dtype=torch.float32))
        self.convs = nn.ModuleList(layers)
        self.head = nn.Linear(config.features, config.classes, dtype=torch.float32)

    def features(self, images: Tensor) -> Tensor:
        """Return the features [N, D] of uint8 images [N, C, H, W]."""
        x = from_uint8(images, dtype=self.head.weight.dtype)  # [N, C, H, W] in [-1, 1]
        for conv in self.convs:
            x = F.relu(conv(x))
        return x.mean(dim=(2, 3))  # [N, D]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, classes] of uint8 images [N, C, H, W]."""
        return self.head(self.features(images))


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained network, its recipe, and what it was trained and measured on."""

    network: SmallClassifier
    config: ClassifierConfig
    data_name: str
    data_digest: str
    train_images: int
    held_out_images: int
    held_out_accuracy: float
    train_accuracy: float

    def metadata(self) -> dict[str, Any]:
        """Return everything but the weights as JSON-ready values."""
        values = {key: value for key, value in vars(self).items() if key != "network"}
        return _Record(values).to_content()


@dataclass(frozen=True)
class _Record(Document):
    """What a file says of its weights: all of `TrainedClassifier` but the network."""

    what: ClassVar[str] = "record of a trained classifier"
    file_keys: ClassVar[tuple[str, ...]] = tuple(
        field.name for field in fields(TrainedClassifier) if field.name != "network"
    )

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        v = self.values
        wrong = [name for name in ("data_name", "data_digest") if not isinstance(v[name], str)]
        wrong += [name for name in ("train_images", "held_out_images") if not is_int(v[name], 0)]
        shares = ("held_out_accuracy", "train_accuracy")
        wrong += [name for name in shares if not is_number(v[name], 0, 1)]
        for name in wrong:
            raise Refusal(f"{name} is {v[name]!r}; need text, a count, or a share from 0 to 1")

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON values."""
        return {**self.values, "config": self.values["config"].to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> _Record:
        """Build the record from `to_dict()` output."""
        return cls({**values, "config": ClassifierConfig.from_dict(values["config"])})


def data_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the SHA-256 of images (uint8) and labels (int64), shapes included."""
    digest = hashlib.sha256()
    for array in (images, labels.astype("<i8")):
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    data_name: str,
    config: ClassifierConfig | None = None,
    progress: Any = None,
) -> TrainedClassifier:
    """Train a SmallClassifier on one CPU thread, so that the same call gives the same bytes.

    Args:
        images: uint8 [N, C, H, W] with H = W and C 1 or 3.
        labels: integers [N] from 0 to classes - 1.
        data_name: what the images are; part of the extractor's name.
        config: the recipe; None derives it from the images.
        progress: callable (epoch, epochs, loss) called after every epoch, or None.

    Returns:
        The network in eval mode with its accuracy on the held-out images.

    Raises:
        TypeError: images that are not uint8, labels that are not integers.
        ValueError: shapes that do not fit or too few images.
    """
    classes = _check_labelled(images, labels)
    if config is None:
        config = ClassifierConfig(
            image_size=images.shape[2], image_channels=images.shape[1], classes=classes
        )
    shape = (config.image_channels, config.image_size, config.image_size)
    if images.shape[1:] != shape or classes > config.classes:
        raise Refusal(
            f"train_classifier: images are {images.shape[1:]} with {classes} classes, the config "
            f"says {shape} with {config.classes}; need equal ones"
        )
    order = np.random.default_rng(config.seed).permutation(len(images))
    held_out = int(len(images) * _HELD_OUT_FRACTION)
    if len(images) < LEAST_IMAGES:
        raise Refusal(
            f"train_classifier: {len(images)} images leave none to be held out; "
            f"need at least {LEAST_IMAGES}"
        )
    x, y = torch.from_numpy(images[order]), torch.from_numpy(labels[order].astype(np.int64))
    with _one_thread():
        network = _fit(config, x[held_out:], y[held_out:], progress)
        held_out_accuracy = accuracy(network, x[:held_out], y[:held_out])
        train_accuracy = accuracy(network, x[held_out:], y[held_out:])
    return TrainedClassifier(
        network=network,
        config=config,
        data_name=data_name,
        data_digest=data_digest(images, labels),
        train_images=len(images) - held_out,
        held_out_images=held_out,
        held_out_accuracy=held_out_accuracy,
        train_accuracy=train_accuracy,
    )


def _check_labelled(images: np.ndarray, labels: np.ndarray) -> int:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        raise TypeRefusal(f"train_classifier: images are {kind}; need a uint8 array [N, C, H, W]")
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeRefusal(f"train_classifier: labels are {kind}; need an integer array [N]")
    if images.ndim != 4 or images.shape[2] != images.shape[3] or images.shape[1] not in (1, 3):
        raise Refusal(
            f"train_classifier: images have shape {images.shape}; "
            "need [N, C, H, W] with C 1 or 3 and H = W"
        )
    if labels.shape != (len(images),) or len(images) == 0 or labels.min() < 0:
        raise Refusal(
            f"train_classifier: labels have shape {labels.shape} for {len(images)} images; "
            "need one class number >= 0 an image"
        )
    classes = int(labels.max()) + 1
    if classes < 2:
        raise Refusal("train_classifier: all labels are 0; need at least two classes")
    return classes


def _fit(config: ClassifierConfig, x: Tensor, y: Tensor, progress: Any) -> SmallClassifier:
    generator = torch.Generator().manual_seed(config.seed)
    # The layers' own initialisation draws globally, and where torch's default device is.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        network = SmallClassifier(config)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(parameter)
    steps_an_epoch = -(-len(x) // config.batch_images)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs * steps_an_epoch)
    for epoch in range(config.epochs):
        order = torch.randperm(len(x), generator=generator, device="cpu")
        total = 0.0
        for batch in order.split(config.batch_images):
            loss = F.cross_entropy(network(x[batch]), y[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            decay.step()
            total += float(loss.detach()) * len(batch)
        if progress is not None:
            progress(epoch + 1, config.epochs, total / len(x))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(network: SmallClassifier, images: Tensor, labels: Tensor) -> float:
    """Return the share of uint8 images [N, C, H, W] whose largest logit is their label [N]."""
    hits = sum(
        int((network(x).argmax(dim=1) == y).sum())
        for x, y in zip(images.split(512), labels.split(512), strict=True)
    )
    return hits / len(images)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in a fixed order: more threads split a reduction in another way on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def save_classifier(trained: TrainedClassifier, path: str | Path) -> str:
    """Write weights and metadata as one safetensors file, atomically; return its SHA-256."""
    tensors = {name: t.contiguous() for name, t in trained.network.state_dict().items()}
    record = trained.metadata()
    record[KEY] = _content_digest(record, safetensors.torch.save(tensors))
    text = json.dumps(record, sort_keys=True)
    data = safetensors.torch.save(tensors, metadata={_METADATA_KEY: text})
    write_atomic(Path(path), data)
    return hashlib.sha256(data).hexdigest()


def load_classifier(path: str | Path) -> tuple[TrainedClassifier, str]:
    """Read a file of `save_classifier`.

    Returns:
        The classifier in eval mode and the file's SHA-256.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, no classifier in it, weights that do not fit, or not as
            it was written.
    """
    data = read_bytes(path, ".safetensors classifier")
    metadata, tensors = _read_safetensors(path, data)
    where = f"classifier {path}: metadata"
    content = parse_json(metadata.get(_METADATA_KEY, "{}"), where)
    # the file of the package, from before there was one, has no digest
    stated = content.pop(KEY, None) if isinstance(content, dict) else None
    if stated is not None and stated != _content_digest(content, data):
        raise Refusal(f"classifier {path}: does not match its SHA-256; need an intact file")
    record = _Record.from_content(content, where)
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes the file states
            network = SmallClassifier(record.values["config"])
        expected = {name: (t.shape, t.dtype) for name, t in network.state_dict().items()}
        fits = expected == {name: (t.shape, t.dtype) for name, t in tensors.items()}
        fits = fits and all(bool(torch.isfinite(t).all()) for t in tensors.values())
    except (RuntimeError, TypeError):  # sizes beyond any memory
        fits = False
    if not fits:
        raise Refusal(
            f"classifier {path}: its weights do not fit its own metadata; need an intact file"
        )
    network.to_empty(device="cpu").load_state_dict(tensors)
    network.eval().requires_grad_(False)
    trained = TrainedClassifier(network=network, **record.values)
    return trained, hashlib.sha256(data).hexdigest()


def _content_digest(record: Mapping[str, Any], data: bytes) -> str:
    """SHA-256 of a classifier's record and of the weights that a safetensors file holds."""
    weights = data[8 + int.from_bytes(data[:8], "little") :]
    return json_digest([record, hashlib.sha256(weights).hexdigest()])


def _read_safetensors(path: str | Path, data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        tensors = parse_safetensors(data, str(path))
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], str(path))
    except (ValueError, KeyError) as error:  # KeyError: a type of numbers that torch has not
        raise Refusal(
            f"classifier {path}: not a safetensors file; need one written by save_classifier"
        ) from error
    return header.get("__metadata__") or {}, tensors
