"""Data sets: digits, folders, archives and CIFAR-10 as one uint8 array of equal images.

A set is known by the content of its pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ddsm_ext.data.cifar import is_cifar10, is_cifar10_name, read_cifar10
from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.entries import ReadLimits, folder_entries
from ddsm_ext.data.fitting import Stack
from ddsm_ext.data.images import is_image_name
from ddsm_ext.data.latents import is_latent_archive
from ddsm_ext.data.layout import TABLE, Layout
from ddsm_ext.data.sample_archive import is_sample_archive, read_sample_archive
from ddsm_ext.data.source import PassedOver, list_source, read_images
from ddsm_ext.data.splits import chosen_indices
from ddsm_ext.io.files import naming, open_regular, parse_json, write_atomic
from ddsm_ext.settings import Refusal

_CACHE_VERSION = 3  # change when the same settings give other pixels, classes or splits


@dataclass(frozen=True)
class ImageDataset:
    """Images of one split, all of one size."""

    images: NDArray[np.uint8]  # [N, C, H, W]
    labels: NDArray[np.int64] | None  # [N]; None when the source has no classes
    class_names: tuple[str, ...]
    name: str  # "digits", or the name of the source's file or folder, which may be the same
    digest: str  # SHA-256 of shape, pixels and labels: the identity of the set
    flips: bool = False  # whether training mirrors images at random
    has_held_out: bool = False  # a "train" split, whose source has images for "test" as well

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One image, uint8 [C, H, W]."""
        return self.images[index]

    def batch(self, indices: Tensor, mirrored: Tensor | None, noise: Generator) -> Tensor:
        """Images of a training step, uint8 [B, C, H, W].

        Args:
            indices: int64 [B].
            mirrored: which of them are flipped from left to right, bool [B]; None: none.
            noise: what latents are drawn by.
        """
        images = torch.from_numpy(self.images)[indices]
        if mirrored is None:
            return images
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)

    def pictures(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Some of the images, uint8 [n, C, H, W]."""
        return self.images[indices]

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """All images, uint8 [n, C, H, W], n up to `size`."""
        yield from (self.images[at : at + size] for at in range(0, len(self), size))

    def whole(self) -> ImageDataset:
        """The set with all its images in memory."""
        return self

    @property
    def class_count(self) -> int:
        """How many classes there are images of; 0: they have none."""
        return 0 if self.labels is None else len(np.unique(self.labels))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width


def _digest(images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> str:
    shapes = f"uint8 {list(images.shape)} labels {labels is not None}\n"
    digest = hashlib.sha256(shapes.encode())
    digest.update(np.ascontiguousarray(images).data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def load_dataset(
    config: DataConfig, progress: Callable[[int, int], None] | None = None
) -> ImageDataset:
    """Read the images that `config` names.

    Images of other sizes are cropped to their central square, then resized with Pillow: Lanczos
    when they shrink, bicubic when they grow. RGB becomes grey by ITU-R 601 luma; grey is repeated
    for RGB. The digits of scikit-learn (0..16) are scaled to 0..255. A limited set is a random
    sub-set drawn with `split_seed`, in the source's order.

    Classes are those of `Layout`. Folders named for training, validation and tests, such as train,
    val2017 or test_set, divide a source: "train" has the first, "test" the last, or those for
    validation where there are none for tests; "all" has every image. What is left out, and why, is
    said in a warning.

    Args:
        config: source, size, channels, split, cache, and what becomes of odd images.
        progress: called with the images of a folder or archive that are read, and all of them.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a damaged or hostile file, images of unequal size, or an empty split.
    """
    raw, name = _read_or_cached(config, progress)
    for note in raw.notes:
        warnings.warn(f"{config.source}: {note}", stacklevel=2)
    images, labels = raw.images, raw.labels
    chosen = chosen_indices(config, len(images), raw.has_test_part)
    if chosen is not None:
        images, labels = images[chosen], None if labels is None else labels[chosen]
    images = np.ascontiguousarray(images)
    digest = _digest(images, labels)
    divided = config.split == "train" and (raw.has_test_part or config.held_out > 0)
    return ImageDataset(
        images,
        labels,
        raw.class_names,
        name,
        digest,
        config.flips,
        divided,
    )


def set_name(source: str) -> str:
    """Return what the set of a source is called: its file or folder."""
    path = Path(source)
    name = path.name if path.name not in ("", "..") else path.resolve().name or str(path)
    if not path.is_dir():
        name = name.split(".tar")[0] if ".tar" in name else (path.stem or name)
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _read_or_cached(
    config: DataConfig, progress: Callable[[int, int], None] | None
) -> tuple[_RawImages, str]:
    if config.source == "digits":
        return _read_digits(config), "digits"
    name = set_name(config.source)
    if config.cache is None:
        return _read_path(config, progress), name
    file = Path(config.cache) / f"{source_digest(config)}.safetensors"
    raw = _RawImages.load(file)
    if raw is None:
        raw = _read_path(config, progress)
        raw.save(file)
    return raw, name


@dataclass(frozen=True)
class _RawImages:
    """What a source gave for one split, before held-out and limit."""

    images: NDArray[np.uint8]  # [N, C, H, W]
    labels: NDArray[np.int64] | None  # [N]
    class_names: tuple[str, ...]
    has_test_part: bool  # the source itself is divided into train and test
    notes: tuple[str, ...] = ()  # what was left out

    def save(self, file: Path) -> None:
        """Write as safetensors, with the digest of all of it."""
        from safetensors.numpy import save

        arrays: dict[str, NDArray[Any]] = {"images": np.ascontiguousarray(self.images)}
        if self.labels is not None:
            arrays["labels"] = self.labels
        about = json.dumps(
            {
                "classes": self.class_names,
                "has_test_part": self.has_test_part,
                "notes": self.notes,
            }
        )
        metadata = {"about": about, "sha256": _sha256(arrays, about)}
        write_atomic(file, save(arrays, metadata=metadata))

    @staticmethod
    def load(file: Path) -> _RawImages | None:
        """Read a cache file; None when it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        if not file.is_file():
            return None
        need = "need a file of the cache that can be read, or data.cache elsewhere"
        with (
            naming(file, need),
            contextlib.suppress(SafetensorError, ValueError, KeyError, TypeError),
        ):
            with safe_open(file, framework="np") as stored:
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                metadata = stored.metadata()
            about = parse_json(metadata["about"], str(file))
            if metadata["sha256"] == _sha256(arrays, metadata["about"]):
                names, notes = tuple(about["classes"]), tuple(about["notes"])
                has_test_part = bool(about["has_test_part"])
                images, labels = arrays["images"], arrays.get("labels")
                return _RawImages(images, labels, names, has_test_part, notes)
        return None


def _sha256(arrays: dict[str, NDArray[Any]], about: str) -> str:
    digest = hashlib.sha256(f"{about}\n".encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {list(arrays[name].shape)}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def source_digest(config: DataConfig) -> str:
    """SHA-256 of the source's files and of the settings that decide the decoded pixels.

    Raises:
        FileNotFoundError: no such file or folder.
    """
    if config.source == "digits":
        return hashlib.sha256(b"digits").hexdigest()
    path = source_path(config.source)
    # source and cache are paths; held_out, limit and their seed choose later; flip is of training
    later = ("source", "cache", "held_out", "limit", "split_seed", "flip")
    settings = {key: value for key, value in config.to_dict().items() if key not in later}
    digest = hashlib.sha256(json.dumps([_CACHE_VERSION, settings]).encode())
    files = {"": path}
    if path.is_dir():
        entries = folder_entries(path, ReadLimits())
        files = {entry.name: Path(entry.where) for entry in entries if _decides(entry.name)}
    for name, file in files.items():
        need = "need a file that can be read"
        with naming(file, need), open_regular(file, "file of images") as stream:
            content = hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()
        digest.update(os.fsencode(name) + f"\0{content}\n".encode())
    return digest.hexdigest()


def _decides(name: str) -> bool:
    """Whether a file of a folder can change what is read from it."""
    is_table = name.rpartition("/")[2] == TABLE
    return is_image_name(name) or is_table or is_cifar10_name(name)


def source_path(source: str) -> Path:
    """Return the path of a source of images.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it holds latents.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"data source {source!r}: no such file or folder; need 'digits', an image folder, a "
            "ZIP, a tar, a binary CIFAR-10 archive, or a .npz of samples"
        )
    if is_latent_archive(path):
        raise Refusal(f"{path}: holds latents of images; need the images themselves")
    return path


def _read_digits(config: DataConfig) -> _RawImages:
    """The 1797 grey 8x8 digits of scikit-learn (UCI, Alpaydin & Kaynak 1998), 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)  # [1797, 8, 8]
    stack = Stack("digits", config)
    for index, image in enumerate(grey):
        stack.add(image[:, :, None], f"digit {index}")
    labels = digits.target.astype(np.int64)
    notes = []
    if os.path.exists("digits"):
        notes.append("taken as the built-in digits; need ./digits for what lies here by that name")
    array = stack.array()
    return _RawImages(array, labels, tuple("0123456789"), has_test_part=False, notes=tuple(notes))


def _read_path(
    config: DataConfig, progress: Callable[[int, int], None] | None
) -> _RawImages:
    """Images of a folder, ZIP, tar or archive of arrays; of files in the order of sorted names.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: damaged, hostile, unequal or no images.
    """
    path = source_path(config.source)
    limits = replace(ReadLimits(), max_pixels=config.max_pixels)
    if is_sample_archive(path):
        return _read_samples(path, config, limits)
    if is_cifar10(path):
        return _read_cifar(path, config)
    listing = list_source(path, limits)
    layout = Layout(str(path), listing.images, listing.tables)
    part = layout.part(config.split)
    stack, found = Stack(str(path), config), []
    passed_over = PassedOver(config.skip_damaged)
    images = read_images(
        path,
        frozenset(part.names),
        channels=config.channels,
        background=config.background,
        limits=limits,
        passed_over=passed_over,
    )
    for name, pixels in images:
        stack.add(pixels, name)
        found.append(name)
        if progress is not None:
            progress(len(found), len(part.names))
    array = stack.array()
    order = sorted(range(len(found)), key=found.__getitem__)
    if order != list(range(len(order))):  # indexing copies
        array = array[order]
    ids = None if part.labels is None else [part.labels[found[index]] for index in order]
    labels = None if ids is None else np.array(ids, dtype=np.int64)
    notes = [*listing.notes(), *layout.notes(config.split), *passed_over.notes()]
    return _RawImages(array, labels, part.class_names, layout.divided, tuple(notes))


def _read_samples(path: Path, config: DataConfig, limits: ReadLimits) -> _RawImages:
    samples = read_sample_archive(path, limits)
    stack = Stack(str(path), config)
    for index, pixels in enumerate(samples.images):
        stack.add(pixels, f"image {index}")
    labels = samples.labels
    count = 0 if labels is None else int(labels.max(initial=-1)) + 1
    names = tuple(map(str, range(count)))
    return _RawImages(stack.array(), labels, names, has_test_part=False)


def _read_cifar(path: Path, config: DataConfig) -> _RawImages:
    cifar = read_cifar10(path, config.split)
    stack = Stack(str(path), config)
    for index, pixels in enumerate(cifar.pixels):
        stack.add(pixels, f"image {index}")
    return _RawImages(stack.array(), cifar.labels, cifar.class_names, has_test_part=True)
