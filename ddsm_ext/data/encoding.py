"""Writes an archive of latents, shard by shard; the same call goes on where it stopped."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ddsm_ext.data.codec import Codec
from ddsm_ext.data.dataset import source_digest
from ddsm_ext.data.latent_dataset import LABELS, LATENTS
from ddsm_ext.data.latents import (
    MANIFEST,
    LatentManifest,
    Shard,
    SourceImages,
    is_latent_archive,
    shard_name,
)
from ddsm_ext.data.stream import ImageStream
from ddsm_ext.io.files import naming, open_regular, write_atomic
from ddsm_ext.io.lock import RunLock
from ddsm_ext.settings import Refusal

SHARD_IMAGES = 256  # a shard is lost where the work stops, and a file


@dataclass(frozen=True)
class EncodeOptions:
    """How an archive is made.

    Args:
        flips: also latents of the mirrored images.
        dtype: "float32" or "float16", in which they are stored.
        shard_images: images of a file.
        batch_size: images that are encoded together.
    """

    flips: bool = False
    dtype: str = "float32"
    shard_images: int = SHARD_IMAGES
    batch_size: int = 8


def planned(stream: ImageStream, codec: Codec, options: EncodeOptions) -> LatentManifest:
    """Return the manifest of an archive of which nothing is there yet.

    Raises:
        ValueError: the autoencoder takes no such images.
    """
    channels, size, _ = image_shape = stream.shape()
    config = replace(stream.config, image_size=size, channels=channels)
    if config.source != "digits":
        config = replace(config, source=os.path.abspath(config.source))
    labels = stream.labels
    images = SourceImages(
        config=config,
        digest=source_digest(config),
        name=stream.name,
        count=len(stream),
        class_names=() if labels is None else stream.class_names,
        class_count=0 if labels is None else len(np.unique(labels)),
        has_held_out=stream.has_held_out,
    )
    shards = -(-len(stream) // options.shard_images)
    return LatentManifest(
        codec=codec.settings_for(size),
        images=images,
        shape=codec.latent_shape(image_shape),
        dtype=cast(Any, options.dtype),
        flips=options.flips,
        shard_images=options.shard_images,
        shards=(None,) * shards,
    )


def encode(
    stream: ImageStream,
    codec: Codec,
    folder: str | Path,
    options: EncodeOptions | None = None,
    *,
    scale: float | None = None,
    shift: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> LatentManifest:
    """Write latents of images as an archive, or what it lacks.

    A shard is written at once, and then recorded. Where an archive is there already, its shards are
    compared with their SHA-256, and those that are missing or damaged made, the latter with a
    warning.

    Args:
        stream: the images.
        codec: encodes them.
        folder: the archive; made when missing.
        options: None takes the defaults.
        scale: of the latents in the manifest; None takes what it has, and in a new one the codec's;
            0 makes their standard deviation 1.
        shift: in the manifest; None takes what it has, and with scale 0 their mean.
        progress: called with the images that are done, and all of them.
        stopped: asked after every batch whether to stop; what is done of a shard then is lost.

    Returns:
        The manifest; without all shards where it was stopped.

    Raises:
        ValueError: the folder holds something else, latents of other images, settings or another
            autoencoder, or another process writes into it; latents are not finite.
    """
    folder, options = Path(folder), options or EncodeOptions()
    plan = planned(stream, codec, options)
    _check_folder(folder)
    with RunLock(folder):
        manifest = _begun(folder, plan)
        done = sum(shard.images for shard in manifest.shards if shard is not None)
        for number, arrays in _shards(stream, codec, manifest, options, stopped):
            manifest = manifest.with_shard(number, _written(folder, number, arrays, manifest))
            manifest.save(folder / MANIFEST)
            done += len(manifest.rows_of(number))
            if progress is not None:
                progress(done, manifest.images.count)
        if None not in manifest.shards:
            manifest = _scaled(manifest, scale, shift)
        manifest.save(folder / MANIFEST)
    return manifest


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    if is_latent_archive(folder) or not folder.exists():
        return
    other = next((path for path in folder.iterdir() if not path.name.startswith(".")), None)
    if other is not None:
        raise Refusal(f"{folder}: holds {other.name}, and no latents; need a new folder")


def _begun(folder: Path, plan: LatentManifest) -> LatentManifest:
    """The manifest of what a folder has of a planned archive, where that is whole."""
    if not is_latent_archive(folder):
        plan.save(folder / MANIFEST)
        return plan
    found = LatentManifest.load(folder / MANIFEST)
    theirs, mine = found.plan, plan.plan
    for name in mine:
        if theirs[name] != mine[name]:
            was, now = theirs[name], mine[name]
            if isinstance(was, dict) and isinstance(now, dict):
                key = next(key for key in now if was.get(key) != now[key])
                name, was, now = f"{name}.{key}", was.get(key), now[key]
            raise Refusal(
                f"{folder}: holds latents with {name} {was!r}, now it is {now!r}; need another "
                "folder"
            )
    codec = replace(plan.codec, scale=found.codec.scale, shift=found.codec.shift)
    manifest = replace(plan, codec=codec, shards=found.shards)
    for number, shard in enumerate(found.shards):
        if shard is not None and _digest(path := folder / shard_name(number)) != shard.sha256:
            warnings.warn(
                f"{path}: is missing or does not match its SHA-256; its latents are made again",
                stacklevel=3,
            )
            manifest = manifest.with_shard(number, None)
    return manifest


def _digest(path: Path) -> str | None:
    """SHA-256 of a shard; None where there is none."""
    if not path.exists():
        return None
    need = "need a shard of latents that can be read"
    with naming(path, need), open_regular(path, "shard of latents") as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def _shards(
    stream: ImageStream,
    codec: Codec,
    manifest: LatentManifest,
    options: EncodeOptions,
    stopped: Callable[[], bool],
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """Number and tensors of every shard that is missing."""
    missing = [number for number, shard in enumerate(manifest.shards) if shard is None]
    indices = {index for number in missing for index in manifest.rows_of(number)}
    if not indices:
        return
    waiting: list[NDArray[np.uint8]] = []
    made: list[NDArray[Any]] = []
    for index, pixels in stream.read(indices):
        number = index // manifest.shard_images
        rows = manifest.rows_of(number)
        waiting.append(pixels)
        last = index == rows.stop - 1
        if len(waiting) == options.batch_size or last:
            made.append(_encoded(np.stack(waiting), codec, manifest))
            waiting = []
            if last:
                arrays: dict[str, NDArray[Any]] = {LATENTS: np.concatenate(made)}
                if stream.labels is not None:
                    arrays[LABELS] = stream.labels[rows.start : rows.stop]
                made = []
                yield number, arrays
            if stopped():
                return


def _encoded(
    images: NDArray[np.uint8], codec: Codec, manifest: LatentManifest
) -> NDArray[np.floating[Any]]:
    """Latents of images [n, C, H, W] as a shard has them, [n, 1 or 2, parts, c, h, w]."""
    pixels = torch.from_numpy(images)
    turned = [pixels, pixels.flip(3)] if manifest.flips else [pixels]
    moments = torch.stack([codec.encode(each).cpu() for each in turned], dim=1)
    with np.errstate(over="ignore"):
        found = moments.numpy().astype(manifest.dtype)
    if not np.isfinite(found).all():
        raise Refusal(
            f"{codec.config.folder}: latents of an image are not finite in {manifest.dtype}; need "
            "float32, or another autoencoder"
        )
    return found


def _written(
    folder: Path, number: int, arrays: dict[str, NDArray[Any]], manifest: LatentManifest
) -> Shard:
    """Write a shard, and return what the manifest says of it."""
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    write_atomic(folder / shard_name(number), data)
    latents = arrays[LATENTS].astype(np.float64)  # [n, 1 or 2, parts, c, h, w]
    mean = latents[:, :, 0]
    squares = np.square(mean).sum()
    if manifest.parts == 2:
        squares += np.exp(latents[:, :, 1]).sum()
    sha256 = hashlib.sha256(data).hexdigest()
    return Shard(len(latents), sha256, float(mean.sum()), float(squares))


def _scaled(manifest: LatentManifest, scale: float | None, shift: float | None) -> LatentManifest:
    """The manifest of a whole archive with its scale."""
    codec = manifest.codec
    if scale == 0:
        if not manifest.deviation:
            raise Refusal("encode: all latents are equal; need a scale of your own")
        shift = manifest.mean if shift is None else shift
        scale = 1.0 / manifest.deviation
    codec = replace(
        codec,
        scale=codec.scale if scale is None else scale,
        shift=codec.shift if shift is None else shift,
    )
    return replace(manifest, codec=codec)
