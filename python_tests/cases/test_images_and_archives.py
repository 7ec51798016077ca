"""Cases of images as people keep them: layouts, links, formats, archives, odd and damaged files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cases.made import (
    UNSCORED,
    Said,
    encoded,
    folder,
    load,
    picture,
    pictures_named,
    train_line,
    zip_of,
)
from PIL import Image

from ddsm_ext.data.images import decode_image


def test_backslashes_in_a_zip() -> None:
    """D01: libarchive/libarchive#970, PowerShell/Microsoft.PowerShell.Archive#48."""
    parts = [(split, kind) for split in ("train", "test") for kind in ("cat", "dog")]
    names = [f"{split}\\{kind}\\{i}.png" for split, kind in parts for i in range(3)]
    images = load(zip_of("w.zip", pictures_named(names)))
    assert (len(images), images.class_names) == (6, ("cat", "dog"))


def test_dataset_json_ignored() -> None:
    """D02: NVlabs/stylegan2-ada-pytorch#18, eps696/stylegan2ada#18. The layout of dataset_tool.py,
    whose folders are shards."""
    names = [f"{i // 4:05d}/img{i:08d}.png" for i in range(12)]
    labels = json.dumps({"labels": [[name, i % 2] for i, name in enumerate(names)]})
    entries = [*pictures_named(names), ("dataset.json", labels.encode())]
    images = load(zip_of("edm.zip", entries))
    assert images.labels is not None
    assert images.labels.tolist() == [i % 2 for i in range(12)]


def test_validation_images_trained_on() -> None:
    """D03: huggingface/datasets#4015, facebookresearch/dinov2#496 (layout)."""
    for split in ("train", "val"):
        for kind in ("cat", "dog"):
            folder(f"afhq/{split}/{kind}", 3)
    assert len(load("afhq")) == 6


def test_linked_folders_dropped() -> None:
    """D04: huggingface/datasets#6853, pytorch/vision#1580, fastai/fastai#2270."""
    real = folder("real/dog", 3)
    folder("mix/cat", 1)
    Path("mix/dog").symlink_to(real.resolve())
    assert len(load("mix")) == 4


def test_other_formats_dropped() -> None:
    """D05: albertpumarola/GANimation#46, replicate/lora-training#9 (kind)."""
    Path("fmt").mkdir()
    for number, suffix in enumerate(("png", "bmp", "tif", "gif", "jfif", "PNG")):
        kind = {"jfif": "JPEG"}.get(suffix)
        picture(number).save(f"fmt/{number}.{suffix}", kind)
    assert len(load("fmt", image_size=8, channels=3)) == 6


def test_damaged_metadata() -> None:
    """D06: python-pillow/Pillow#5528, #8348. Browsers show such a picture."""
    data = encoded(picture(2), exif=b"Exif\0\0garbage")
    assert np.array_equal(decode_image(data, "a.png"), np.asarray(picture(2)))


def test_hidden_colours_of_transparency() -> None:
    """D07: kohya-ss/sd-scripts#1269, NVIDIA/DIGITS#85. What no viewer shows is white."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., :3] = (71, 112, 76)
    pixels[1:3, 1:3, 3] = 255
    found = decode_image(encoded(Image.fromarray(pixels)), "a.png")
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [71, 112, 76]


def test_non_images_decide() -> None:
    """D08: neosr-project/neosr#43 (kind). Such a table unpacks like a bomb."""
    names = [f"{i}.png" for i in range(3)]
    table = ("log.csv", b"0,0,0\n" * 1_000_000)
    archive = zip_of("z.zip", [*pictures_named(names), table])
    with pytest.warns(UserWarning, match=r"1 of 4 files are of other kinds"):
        assert len(load(archive)) == 3


@pytest.mark.parametrize("name", ["photos.cbz", "photos"])
def test_zip_known_by_suffix_only(name: str) -> None:
    """D09: the kind of mseitzer/pytorch-fid#106."""
    assert len(load(zip_of(name, pictures_named(["a.png", "b.png"])))) == 2


def test_file_names_that_are_no_utf8(ddsm: Callable[..., Said]) -> None:
    """D10: arsenetar/dupeguru#335, matthewearl/deep-anpr#91."""
    folder("nu", 2)
    os.rename(b"nu/00.png", b"nu/\xff\xe9.png")
    said = ddsm(*train_line("nu", "--set", "data.cache=cache", *UNSCORED))
    assert said.code == 0, said.err


def test_one_damaged_file_stops_all() -> None:
    """D11: lucidrains/lightweight-gan#109, lucidrains/gigagan-pytorch#27, pytorch/vision#138."""
    folder("dam", 11)
    Path("dam/99.png").write_bytes(encoded(picture(1))[:60])
    with pytest.raises(ValueError, match=r"99\.png"):
        load("dam")
    with pytest.warns(UserWarning, match=r"99\.png"):
        assert len(load("dam", skip_damaged=1)) == 11


def test_class_from_the_nearest_folder() -> None:
    """D12: Continvvm/continuum#222, TsingZ0/PFLlib#230 (layout). TinyImageNet; ImageFolder finds
    these classes in train/."""
    for kind in ("n01", "n02"):
        folder(f"tin/train/{kind}/images", 3)
    folder("tin/test/images", 3)
    images = load("tin")
    assert images.class_names == ("n01", "n02")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
