"""Archives of latents: what they hold, what is made again, what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.made_latents import Averages, write_archive, write_photos

from ddsm_ext.data import encoding as encoding_module
from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import load_dataset
from ddsm_ext.data.latent_dataset import LatentDataset
from ddsm_ext.data.latents import MANIFEST, LatentManifest, is_latent_archive, shard_name
from ddsm_ext.io.digest import sealed
from ddsm_ext.io.lock import RunLock
from ddsm_ext.settings import Refusal

COUNT = 10


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("images") / "photos", COUNT)


def files(folder: Path) -> dict[str, bytes]:
    """All of an archive but its lock."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def opened(folder: Path, **settings: Any) -> LatentDataset:
    return LatentDataset.load(DataConfig(source=str(folder), **settings))


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("flips", [False, True])
def test_what_an_archive_holds(
    kind: str, dtype: str, flips: bool, photos: Path, tmp_path: Path
) -> None:
    manifest = write_archive(tmp_path / "latents", photos, kind, dtype=dtype, flips=flips)
    dataset, images = opened(tmp_path / "latents"), load_dataset(DataConfig(source=str(photos)))
    pixels = torch.from_numpy(images.images)
    order = np.arange(COUNT)
    turned = torch.ones(COUNT, dtype=torch.bool)
    wanted = Averages(kind).encode(pixels).numpy().astype(dtype)
    assert np.array_equal(dataset.moments(order), wanted)
    assert np.array_equal(dataset.moments(order[::-1]), wanted[::-1])
    if flips:
        mirrored = Averages(kind).encode(pixels.flip(3)).numpy().astype(dtype)
        assert np.array_equal(dataset.moments(order, turned), mirrored)
        some = turned.clone()
        some[::3] = False
        found = dataset.moments(order, some)
        assert np.array_equal(
            found, np.where(some.numpy()[:, None, None, None, None], mirrored, wanted)
        )
    assert np.array_equal(dataset.labels, images.labels)
    assert (dataset.class_names, dataset.shape) == (images.class_names, (2, 4, 4))
    assert (len(dataset), dataset.flips, dataset.name) == (COUNT, flips, "latents")
    assert [s and s.images for s in manifest.shards] == [4, 4, 2]
    about = manifest.images
    assert (about.count, about.class_count, about.name) == (COUNT, 2, "photos")
    assert about.config == DataConfig(source=str(photos), image_size=8, channels=1)


def test_a_batch_of_a_kl_is_drawn_with_the_noise_of_its_generator(
    photos: Path, tmp_path: Path
) -> None:
    """(mean + std noise - shift) scale, of the mirrored image where that is wanted."""
    write_archive(tmp_path / "latents", photos)
    dataset = opened(tmp_path / "latents")
    indices, turned = torch.tensor([9, 0, 5]), torch.tensor([True, False, True])
    found = dataset.batch(indices, turned, torch.Generator().manual_seed(7))
    noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(7))
    images = torch.from_numpy(load_dataset(DataConfig(source=str(photos))).images)[indices]
    images[0], images[2] = images[0].flip(2), images[2].flip(2)
    mean, logvar = Averages().encode(images).unbind(1)
    wanted = (mean.double() + (0.5 * logvar.double()).exp() * noise.double() - 0.25) * 0.5
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), wanted, rtol=0, atol=1e-6)
    plain = dataset.batch(indices, None, torch.Generator().manual_seed(7))
    assert torch.equal(plain[1], found[1])
    assert not torch.equal(plain[0], found[0])


def test_a_batch_of_a_vq_has_no_noise(photos: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "latents", photos, "vq")
    dataset, before = opened(tmp_path / "latents"), torch.Generator().manual_seed(7)
    found = dataset.batch(torch.arange(COUNT), None, before)
    codes = torch.from_numpy(dataset.moments(np.arange(COUNT))[:, 0])
    assert torch.allclose(found, (codes - 0.25) * 0.5)


def test_scale_and_shift_that_make_the_deviation_one(photos: Path, tmp_path: Path) -> None:
    """Of all latents, with the variance by which a KL's are drawn; nothing is encoded again."""
    codec = Averages()
    first = write_archive(tmp_path / "latents", photos, codec=codec)
    assert (first.codec.scale, first.codec.shift, first.codec.decode_macs) == (0.5, 0.25, 1000)
    dataset, calls = opened(tmp_path / "latents"), codec.calls
    every = [dataset.moments(np.arange(COUNT), torch.full((COUNT,), t)) for t in (False, True)]
    mean, logvar = np.concatenate(every).astype(np.float64).transpose(1, 0, 2, 3, 4)
    deviation = np.sqrt(mean.var() + np.exp(logvar).mean())
    assert first.deviation == pytest.approx(deviation, rel=1e-9)
    again = write_archive(tmp_path / "latents", photos, codec=codec, scale=0)
    assert codec.calls == calls
    assert again.codec.scale == pytest.approx(1 / deviation, rel=1e-9)
    assert again.codec.shift == pytest.approx(mean.mean(), rel=1e-6)
    assert again.digest == first.digest  # of the latents
    kept = write_archive(tmp_path / "latents", photos, codec=codec)
    assert kept.codec == again.codec  # by a command that says nothing of it
    own = write_archive(tmp_path / "latents", photos, codec=codec, scale=2.0, shift=1.0)
    assert (own.codec.scale, own.codec.shift) == (2.0, 1.0)


@pytest.mark.parametrize("stop_at", range(4))
def test_stopped_and_continued_equals_undisturbed(
    stop_at: int, photos: Path, tmp_path: Path
) -> None:
    """After any batch: whole shards are kept, and no other file is left."""
    write_archive(tmp_path / "whole", photos)
    asked = iter(range(100))
    part = write_archive(tmp_path / "part", photos, stopped=lambda: next(asked) == stop_at)
    done = sum(shard is not None for shard in part.shards)
    assert done == [0, 1, 1, 2][stop_at]
    with pytest.raises(Refusal, match=rf"holds {done} of 3 shards .*need the same ddsm encode"):
        opened(tmp_path / "part")
    codec = Averages()
    write_archive(tmp_path / "part", photos, codec=codec)
    assert codec.calls == 2 * sum([2, 2, 1][done:])  # of images and of mirrored ones
    assert files(tmp_path / "part") == files(tmp_path / "whole")


@pytest.mark.parametrize("moment", range(5))
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_write_and_continued_equals_undisturbed(
    moment: int, when: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around the rename of each file: manifest, shard, manifest, ..."""
    write_archive(tmp_path / "whole", photos)
    rename, seen = os.replace, iter(range(100))

    def killing(source: str, target: str) -> None:
        last = next(seen) == moment
        if last and when == "before":
            raise KeyboardInterrupt
        rename(source, target)
        if last:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killing)
    with pytest.raises(KeyboardInterrupt):
        write_archive(tmp_path / "part", photos)
    monkeypatch.undo()
    write_archive(tmp_path / "part", photos)
    assert files(tmp_path / "part") == files(tmp_path / "whole")


def test_every_changed_bit_is_seen_and_mended(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    write_archive(folder, photos)
    whole, draws = files(folder), np.random.default_rng(0)
    for number in range(3):
        path = folder / shard_name(number)
        for _ in range(12):
            data = bytearray(whole[path.name])
            data[draws.integers(len(data))] ^= 1 << int(draws.integers(8))
            path.write_bytes(data)
            with pytest.raises(Refusal, match=rf"{path.name}: does not match its SHA-256"):
                opened(folder)
        codec = Averages()
        with pytest.warns(UserWarning, match=rf"{path.name}: is missing or does not match"):
            write_archive(folder, photos, codec=codec)
        assert codec.calls == 2 * [2, 2, 1][number]  # that shard's alone
        assert files(folder) == whole
    (folder / shard_name(1)).unlink()
    with pytest.raises(FileNotFoundError, match=shard_name(1)):
        opened(folder)
    with pytest.warns(UserWarning, match="is missing or does not match"):
        write_archive(folder, photos)
    assert files(folder) == whole


def test_changes_of_the_manifest_are_seen(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    write_archive(folder, photos)
    whole, draws = (folder / MANIFEST).read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        data[draws.integers(len(data))] ^= 1 << int(draws.integers(8))
        (folder / MANIFEST).write_bytes(data)
        try:
            assert opened(folder).digest == LatentManifest.load(folder / MANIFEST).digest
        except (Refusal, FileNotFoundError):
            continue
        assert json.loads(data) == json.loads(whole)  # in white space alone
    for length in range(0, len(whole) - 2, 97):
        (folder / MANIFEST).write_bytes(whole[:length])
        with pytest.raises(Refusal, match=MANIFEST):
            opened(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("shape",), [2, 4]),
        (("shape",), [2, 4, -4]),
        (("shape",), [2, 2**50, 2**50]),
        (("shape",), [1, 4, 4]),
        (("shard_images",), 0),
        (("shard_images",), 2**52),
        (("images", "count"), 2**52),
        (("images", "count"), 0),
        (("images", "config"), {"image_size": 8}),
        (("images", "config", "channels"), 7),
        (("images", "class_names"), ["a"]),
        (("dtype",), "float64"),
        (("dtype",), "float16"),
        (("flips",), False),
        (("shards",), []),
        (("shards",), [None, None, None]),
        (("codec", "kind"), "pixels"),
        (("codec", "kind"), "vq"),
        (("codec", "scale"), 0),
        (("codec", "scale"), "1"),
        (("codec", "extra"), 1),
        (("codec",), {}),
    ],
)
def test_evil_manifests_are_refused(
    path: tuple[str, ...], value: Any, photos: Path, tmp_path: Path
) -> None:
    """Without much memory, and by name."""
    folder = tmp_path / "latents"
    write_archive(folder, photos)
    content = json.loads((folder / MANIFEST).read_text())
    del content["digest"]
    place = content
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (folder / MANIFEST).write_text(json.dumps(sealed(content)))
    with pytest.raises(Refusal, match="latents"):
        opened(folder)


def test_evil_shards_are_refused(photos: Path, tmp_path: Path) -> None:
    """Whose digest the manifest has."""
    from safetensors.numpy import load, save

    folder = tmp_path / "latents"
    write_archive(folder, photos)
    manifest, path = LatentManifest.load(folder / MANIFEST), folder / shard_name(0)
    tensors = load(path.read_bytes())
    whole = path.read_bytes()
    evil = [
        b"", whole[:40], whole[:-8], b"\xff" * 100,
        save({"labels": tensors["labels"]}),
        save({"latents": tensors["latents"]}),
        save({**tensors, "latents": tensors["latents"].astype(np.float64)}),
        save({**tensors, "latents": tensors["latents"][:3]}),
        save({**tensors, "labels": tensors["labels"] + 100}),
        save({**tensors, "labels": tensors["labels"] - 100}),
        save({**tensors, "labels": tensors["labels"].astype(np.int32)}),
    ]  # fmt: skip
    for content in evil:
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        shard = manifest.shards[0]
        assert shard is not None
        manifest.with_shard(0, replace(shard, sha256=digest)).save(folder / MANIFEST)
        with pytest.raises(Refusal, match=path.name):
            opened(folder)


def test_archives_of_other_settings_are_refused(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    write_archive(folder, photos)
    whole = files(folder)
    for options, name in (
        ({"flips": False}, "flips True, now it is False"),
        ({"dtype": "float16"}, "dtype 'float32', now it is 'float16'"),
        ({"shard_images": 5}, "shard_images 4, now it is 5"),
        ({"kind": "vq"}, "kind 'kl', now it is 'vq'"),
    ):
        with pytest.raises(Refusal, match=rf"holds latents with {name}; need another folder"):
            write_archive(folder, photos, **options)
    other = write_photos(tmp_path / "other", COUNT)
    (other / "class-0" / "0.png").write_bytes((other / "class-0" / "2.png").read_bytes())
    with pytest.raises(Refusal, match=r"holds latents with images\.digest"):
        write_archive(folder, other)
    assert files(folder) == whole


def test_images_may_lie_elsewhere_when_it_goes_on(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    asked = iter(range(100))
    write_archive(folder, photos, stopped=lambda: next(asked) == 2)
    moved = write_photos(tmp_path / "photos", COUNT)
    manifest = write_archive(folder, moved, batch_size=1)
    assert manifest.images.config.source == str(moved)
    assert opened(folder).digest == manifest.digest


def test_folders_of_something_else_are_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(Refusal, match=r"holds thesis\.txt, and no latents; need a new folder"):
        write_archive(tmp_path / "mine", photos)
    assert not is_latent_archive(tmp_path / "mine")


def test_one_process_writes(photos: Path, tmp_path: Path) -> None:
    folder, errors = tmp_path / "latents", []
    folder.mkdir()

    def other() -> None:
        try:
            write_archive(folder, photos)
        except Refusal as error:
            errors.append(str(error))

    with RunLock(folder):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert "is writing into it; need it to end first" in errors[0]


def test_latents_that_are_not_finite_are_refused(photos: Path, tmp_path: Path) -> None:
    class Large(Averages):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return super().encode(images) * 1e5

    with pytest.raises(Refusal, match="not finite in float16; need float32"):
        write_archive(tmp_path / "latents", photos, codec=Large(), dtype="float16")
    assert write_archive(tmp_path / "more", photos, codec=Large()).deviation > 1e4


def test_mirrored_latents_that_are_not_there(photos: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "latents", photos, flips=False)
    with pytest.raises(Refusal, match=r"data\.flip is true.*need ddsm encode with --flips"):
        opened(tmp_path / "latents", flip=True)
    assert not opened(tmp_path / "latents").flips
    write_archive(tmp_path / "both", photos)
    assert not opened(tmp_path / "both", flip=False).flips
    assert opened(tmp_path / "both", flip=True).flips


def test_latents_are_no_images(photos: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "latents", photos)
    with pytest.raises(Refusal, match="holds latents of images; need the images themselves"):
        load_dataset(DataConfig(source=str(tmp_path / "latents")))


def test_images_without_classes(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", COUNT, classes=0)
    manifest = write_archive(tmp_path / "latents", photos)
    assert opened(tmp_path / "latents").labels is None
    assert (manifest.images.class_names, manifest.images.class_count) == ((), 0)


def test_a_shard_that_changes_while_it_is_read_is_refused(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    write_archive(folder, photos)
    dataset = opened(folder)
    path = folder / shard_name(2)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(Refusal, match=rf"{path.name}: ends within a latent"):
        dataset.moments(np.arange(COUNT))


def test_a_shard_that_cannot_be_read_is_not_damaged(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made again for an error of the disk."""
    folder = tmp_path / "latents"
    write_archive(folder, photos)

    def failing(path: Path, what: str) -> io.BytesIO:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(encoding_module, "open_regular", failing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OSError, match="Input/output error; need a shard of latents"):
            write_archive(folder, photos)
