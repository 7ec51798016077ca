"""latents.json: what an archive of latents holds, of which images, and by which autoencoder.

Imports no torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from ddsm_ext.data.config import CodecConfig, DataConfig
from ddsm_ext.io.digest import json_digest
from ddsm_ext.io.typed import Amount, Count, Label, Row, TypedDocument, Within
from ddsm_ext.settings import Refusal

MANIFEST = "latents.json"
_Side = Annotated[int, Within(1)]


@dataclass(frozen=True)
class Shard(Row):
    """A file of an archive.

    Args:
        images: it holds latents of so many.
        sha256: of the file.
        total, squares: sums of its latents and of their squares, with what a KL's variance adds to
            these.
    """

    images: Count
    sha256: Label
    total: float
    squares: Amount


@dataclass(frozen=True)
class SourceImages(Row):
    """The images that the latents are of.

    Args:
        config: of them, with the full path of their source, and size and channels in full.
        digest: SHA-256 of the source's files and of the settings that decide pixels.
        name: of the set.
        count: how many.
        class_names: of their classes; (): they have none.
        class_count: how many classes there are images of.
        has_held_out: whether their source has images for "test" as well.
    """

    config: DataConfig
    digest: Label
    name: Label
    count: Count
    class_names: tuple[Label, ...] = ()
    class_count: Count = 0
    has_held_out: bool = False

    def __post_init__(self) -> None:
        if self.config.image_size is None or self.config.channels is None:
            raise Refusal("config says no image_size or no channels; need both")


@dataclass(frozen=True)
class LatentManifest(TypedDocument):
    """An archive of latents.

    Args:
        codec: of a run that is trained on it.
        images: that the latents are of.
        shape: (c, h, w) of a latent.
        dtype: in which they are stored.
        flips: whether those of the mirrored images are there too.
        shard_images: images of each shard but the last.
        shards: those that are finished, by number.
    """

    what: ClassVar[str] = "manifest of latents"

    codec: CodecConfig
    images: SourceImages
    shape: tuple[_Side, _Side, _Side]
    dtype: Literal["float32", "float16"]
    flips: bool
    shard_images: _Side
    shards: tuple[Shard | None, ...]

    def __post_init__(self) -> None:
        count = -(-self.images.count // self.shard_images)
        if len(self.shards) != count or not self.codec.of_latents or not self.images.count:
            raise Refusal(
                f"has {len(self.shards)} shards of {self.codec.kind}; need {count} of latents"
            )
        for number, shard in enumerate(self.shards):
            if shard is not None and shard.images != len(self.rows_of(number)):
                raise Refusal(
                    f"shards[{number}] has {shard.images} images; need {len(self.rows_of(number))}"
                )

    @classmethod
    def of_archive(cls, folder: str | Path) -> LatentManifest:
        """Read the manifest of a whole archive.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or the archive is not whole.
        """
        found = cls.load(Path(folder) / MANIFEST)
        done = sum(shard is not None for shard in found.shards)
        if done < len(found.shards):
            raise Refusal(
                f"{folder}: holds {done} of {len(found.shards)} shards of latents; need the same "
                "ddsm encode once more, which finishes them"
            )
        return found

    @property
    def parts(self) -> int:
        """Tensors of a latent: mean and log-variance, or the codes."""
        return 2 if self.codec.kind == "kl" else 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(1 or 2, parts, c, h, w) of an image in a shard: as it is, and mirrored."""
        return 1 + self.flips, self.parts, *self.shape

    def rows_of(self, number: int) -> range:
        """The images of a shard."""
        start = number * self.shard_images
        return range(start, min(start + self.shard_images, self.images.count))

    @property
    def plan(self) -> dict[str, Any]:
        """What the latents depend on: not where anything lies, nor how a run scales them."""
        config = self.images.config.to_dict()
        for name in ("source", "cache", "flip"):
            del config[name]
        return {
            "kind": self.codec.kind,
            "autoencoder": self.codec.digest,
            "images": {**config, "digest": self.images.digest},
            "shape": list(self.shape),
            "dtype": self.dtype,
            "flips": self.flips,
            "shard_images": self.shard_images,
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the latents: the identity of the set."""
        return json_digest([self.plan, [shard and shard.sha256 for shard in self.shards]])

    @property
    def deviation(self) -> float:
        """Standard deviation of all values of the latents, neither scaled nor shifted."""
        mean, square = self._moments()
        return max(0.0, square - mean * mean) ** 0.5

    @property
    def mean(self) -> float:
        """Their mean."""
        return self._moments()[0]

    def _moments(self) -> tuple[float, float]:
        channels, height, width = self.shape
        done = [shard for shard in self.shards if shard is not None]
        values = max(1, sum(s.images for s in done) * channels * height * width * (1 + self.flips))
        return sum(s.total for s in done) / values, sum(s.squares for s in done) / values

    def with_shard(self, number: int, shard: Shard | None) -> LatentManifest:
        """Return the manifest with a shard, or without one, in its place."""
        shards = list(self.shards)
        shards[number] = shard
        return replace(self, shards=tuple(shards))


def shard_name(number: int) -> str:
    """Return the file of a shard."""
    return f"latents-{number:05d}.safetensors"


def is_latent_archive(path: str | Path) -> bool:
    """Whether a path is a folder of latents, whole or not."""
    return os.path.isfile(os.path.join(path, MANIFEST))  # a text that no path can be is none
