"""What the cases are made of: pictures, folders and archives of them, a checkpoint of others."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cli.commands import TINY
from compat.official_weights import formula_weights
from PIL import Image
from torch import Tensor

from ddsm_ext.cli.options import parse_settings
from ddsm_ext.compat.official_ddsm import official_state_dict_shapes
from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import ImageDataset, load_dataset

SMALL = [*TINY, "model.image_size=8", "model.ch_mult=1,2", "model.attn=[]",
         "model.num_res_blocks=1", "train.sample_every=0", "sampler.kind=ddim"]  # fmt: skip
# As most of the cases' images have no classes, and none of them needs a score.
UNSCORED = ["--set", "eval.features=none"]
OFFICIAL = {"T": 1000, "ch": 32, "ch_mult": [1, 2], "attn": [1], "num_res_blocks": 1, "groups": 8,
            "image_size": 8}  # fmt: skip
FLAGS = ["--T=1000", "--ch=32", "--ch_mult=1", "--ch_mult=2", "--attn=1", "--num_res_blocks=1",
         "--img_size=8", "--slimmable_unet"]  # fmt: skip


class Said(NamedTuple):
    """What a command gave back and wrote."""

    code: int
    out: str
    err: str

    @property
    def path(self) -> Path:
        """The last line of stdout."""
        return Path(self.out.splitlines()[-1])


def train_line(data: str | Path, *more: str) -> list[str]:
    """The command that trains a small network, with its file of settings written here."""
    Path("small.json").write_text(json.dumps(parse_settings(SMALL)))
    return ["train", "--config", "small.json", "--data", str(data), *more]


def picture(seed: int, side: int = 8, *, least: int = 0) -> Image.Image:
    """A picture of random colours, from `least` to 127 above it."""
    pixels = np.random.default_rng(seed).integers(least, least + 128, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def folder(name: str | Path, count: int = 12, side: int = 8, *, least: int = 0) -> Path:
    """A folder of pictures."""
    path = Path(name)
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number, side, least=least).save(path / f"{number:02}.png")
    return path


def labelled(name: str | Path) -> Path:
    """Pictures of two classes, a dark one and a bright one."""
    folder(Path(name) / "cat")
    folder(Path(name) / "dog", least=128)
    return Path(name)


def zip_of(name: str, entries: Iterable[tuple[str, bytes]]) -> Path:
    """A ZIP whose entries are named exactly so: of itself zipfile changes backslashes."""
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = entry, zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return Path(name)


def pictures_named(names: Iterable[str]) -> list[tuple[str, bytes]]:
    return [(name, encoded(picture(number))) for number, name in enumerate(names)]


def load(source: str | Path, **settings: Any) -> ImageDataset:
    return load_dataset(DataConfig(source=str(source), **settings))


def official_state() -> dict[str, Tensor]:
    """Weights of a small network of the reference code."""
    return formula_weights(official_state_dict_shapes(OFFICIAL))


def convert_line(content: Any, *flags: str) -> list[str]:
    """The command that imports a checkpoint of the reference code, with its files written here."""
    torch.save(content, "ckpt.pt")
    Path("flagfile.txt").write_text("\n".join([*FLAGS, *flags]) + "\n")
    return ["convert", "ckpt.pt", "--flags", "flagfile.txt", "--groups", "8"]
