"""Latents of an archive, read where a step wants them: an archive may be larger than memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ddsm_ext.data.codec import to_network
from ddsm_ext.data.config import CodecConfig, DataConfig
from ddsm_ext.data.dataset import set_name
from ddsm_ext.data.latents import LatentManifest, Shard, shard_name
from ddsm_ext.io.files import naming, open_regular
from ddsm_ext.io.weights import Place, tensor_places
from ddsm_ext.settings import Refusal

LATENTS, LABELS = "latents", "labels"  # tensors of a shard
DTYPES = {"float32": "F32", "float16": "F16"}
_NEED = "need the archive as ddsm encode wrote it, which mends it"


@dataclass(frozen=True)
class LatentDataset:
    """Latents of the images of a set.

    Args:
        folder: the archive.
        manifest: of it.
        codec: by which latents become what a network has; its scale and shift count.
        name: of the set.
        labels: class of each [N]; None: they have none.
        flips: whether training takes those of mirrored images at random.
        starts: where in its file the latents of each shard begin, in bytes.
    """

    folder: Path
    manifest: LatentManifest
    codec: CodecConfig
    name: str
    labels: NDArray[np.int64] | None
    flips: bool
    starts: tuple[int, ...]

    @classmethod
    def load(
        cls,
        config: DataConfig,
        codec: CodecConfig | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> LatentDataset:
        """Open an archive, after every file of it was compared with its SHA-256.

        Args:
            config: its source is the archive; `flip` says whether mirrored images are taken.
            codec: of a run, whose scale and shift count; None takes the archive's.
            progress: called with the images whose latents were compared, and all of them.

        Raises:
            FileNotFoundError: there is no archive, or a file of it is missing.
            ValueError: it is damaged or not whole, its latents are of another autoencoder than the
                run's, or those of mirrored images are wanted and not there.
        """
        folder = Path(config.source)
        manifest = LatentManifest.of_archive(folder)
        codec = codec or manifest.codec
        if (codec.kind, codec.digest) != (manifest.codec.kind, manifest.codec.digest):
            raise Refusal(
                f"{folder}: holds latents of an autoencoder ({manifest.codec.kind}, SHA-256 "
                f"{str(manifest.codec.digest)[:12]}...) other than the run's ({codec.kind}, "
                f"{str(codec.digest)[:12]}...); need latents of that one, or a new run"
            )
        if config.flip and not manifest.flips:
            raise Refusal(
                f"{folder}: data.flip is true, the latents of mirrored images are not there; need "
                "ddsm encode with --flips, or data.flip=false"
            )
        starts, labels = [], []
        for number, shard in enumerate(manifest.shards):
            assert shard is not None
            start, of_shard = _opened(folder / shard_name(number), manifest, shard)
            starts.append(start)
            labels.append(of_shard)
            if progress is not None:
                progress(manifest.rows_of(number).stop, manifest.images.count)
        known = np.concatenate(labels) if manifest.images.class_names else None
        flips = manifest.flips and config.flip is not False
        name = set_name(config.source)
        return cls(folder, manifest, codec, name, known, flips, tuple(starts))

    def __len__(self) -> int:
        return self.manifest.images.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of a latent."""
        return self.manifest.shape

    @property
    def digest(self) -> str:
        """SHA-256 of all latents and labels: the identity of the set."""
        return self.manifest.digest

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the classes."""
        return self.manifest.images.class_names

    def batch(self, indices: Tensor, mirrored: Tensor | None, noise: Generator) -> Tensor:
        """Latents of a training step as a network has them, float32 [B, c, h, w].

        Args:
            indices: int64 [B].
            mirrored: of which of them the mirrored image's is taken, bool [B]; None: none.
            noise: what those of a KL are drawn by.
        """
        moments = torch.from_numpy(self.moments(indices.numpy(), mirrored))
        drawn = None
        if self.codec.kind == "kl":
            shape = (len(indices), *self.shape)
            drawn = torch.randn(shape, generator=noise, dtype=torch.float32, device="cpu")
        return to_network(moments, drawn, self.codec)

    def moments(
        self, indices: NDArray[np.int64], mirrored: Tensor | None = None
    ) -> NDArray[np.floating[Any]]:
        """What the archive has of some images: [n, 2, c, h, w], mean and log-variance, of a KL;
        [n, 1, c, h, w], the codes before they are quantised, of a VQModel.

        Args:
            indices: of the images [n].
            mirrored: of which of them the mirrored image's is taken, bool [n]; None: none.
        """
        manifest = self.manifest
        _, *shape = manifest.row_shape
        found = np.empty((len(indices), *shape), dtype=manifest.dtype)
        size, turns = found[:1].nbytes, 1 + manifest.flips
        wanted: dict[int, list[int]] = {}
        for at, index in enumerate(indices.tolist()):
            wanted.setdefault(index // manifest.shard_images, []).append(at)
        for number, places in wanted.items():
            path = self.folder / shard_name(number)
            with naming(path, _NEED), open_regular(path, "shard of latents") as file:
                for at in places:
                    row = int(indices[at]) % manifest.shard_images
                    turn = 0 if mirrored is None else int(mirrored[at])
                    start = self.starts[number] + (row * turns + turn) * size
                    _read_into(file, memoryview(found[at]).cast("B"), start, path)
        return found


def _read_into(file: BinaryIO, target: memoryview, start: int, path: Path) -> None:
    """Fill memory with the bytes of a file that begin at `start`."""
    while target.nbytes:
        count = os.preadv(file.fileno(), [target], start)
        if count == 0:
            raise Refusal(f"{path}: ends within a latent; {_NEED}")
        target, start = target[count:], start + count


def _opened(path: Path, manifest: LatentManifest, shard: Shard) -> tuple[int, NDArray[np.int64]]:
    """Where the latents of a whole shard begin in its file, and its labels."""
    with naming(path, _NEED), open_regular(path, "shard of latents") as file:
        if hashlib.file_digest(cast(Any, file), "sha256").hexdigest() != shard.sha256:
            raise Refusal(f"{path}: does not match its SHA-256 in the manifest; {_NEED}")
        places, _ = tensor_places(file, str(path))
        dtype, shape = DTYPES[manifest.dtype], (shard.images, *manifest.row_shape)
        need = f"need {dtype} {list(shape)}"
        found = places.get(LATENTS)
        if found is None or (found.dtype, found.shape) != (dtype, shape):
            raise Refusal(f"{path}: {LATENTS} is {_told(found)}; {need}")
        if not manifest.images.class_names:
            return found.start, np.empty(0, np.int64)
        labels = places.get(LABELS)
        if labels is None or (labels.dtype, labels.shape) != ("I64", (shard.images,)):
            raise Refusal(f"{path}: {LABELS} is {_told(labels)}; need I64 [{shard.images}]")
        file.seek(labels.start)
        values = np.frombuffer(file.read(8 * shard.images), "<i8").astype(np.int64)
    if values.min() < 0 or values.max() >= len(manifest.images.class_names):
        raise Refusal(f"{path}: {LABELS} go beyond the classes of the manifest; {_NEED}")
    return found.start, values


def _told(place: Place | None) -> str:
    return "missing" if place is None else f"{place.dtype} {list(place.shape)}"
