"""An autoencoder from images to diffusers' folder: what it holds, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from eval.photographs import crops
from PIL import Image
from training.toy_autoencoder import needs_diffusers

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import ImageDataset
from ddsm_ext.data.images import read_image
from ddsm_ext.data.pixels import from_uint8, to_uint8
from ddsm_ext.io.checkpoint import load_checkpoint, newest_complete
from ddsm_ext.io.lock import RunLock
from ddsm_ext.run import autoencoder as module
from ddsm_ext.run.autoencoder import (
    AutoencoderImages,
    AutoencoderRecord,
    AutoencoderResult,
    build_autoencoder,
    configure_autoencoder,
    load_autoencoder_images,
    make_autoencoder,
    work_folder,
)
from ddsm_ext.run.autoencoder_costs import (
    check_autoencoder_memory,
    estimate_autoencoder,
    training_seconds,
)
from ddsm_ext.run.autoencoder_scores import Encoder, made_small, psnr, reconstruction_scores

pytestmark = needs_diffusers
CPU = torch.device("cpu")
SIZE = 16
TINY = {
    "block_out_channels": (8, 16), "norm_groups": 4, "steps": 120, "batch_size": 8, "lr": 5e-3,
    "warmup_steps": 10, "ema_decay": 0.9, "checkpoint_every": 40,
}  # fmt: skip


def dataset(count: int, seed: int) -> ImageDataset:
    images = crops(count, SIZE, seed)
    return ImageDataset(images, None, (), "photos", f"crops-{count}-{seed}", flips=True)


IMAGES = AutoencoderImages("photos", dataset(200, 0), dataset(30, 1))


def make(out: Path, images: AutoencoderImages = IMAGES, **changes: Any) -> AutoencoderResult:
    config = configure_autoencoder(SIZE, changes={**TINY, **changes})
    return make_autoencoder(out, images, config, device="cpu")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> AutoencoderResult:
    return make(tmp_path_factory.mktemp("made") / "ae")


def averaged(out: Path) -> Any:
    """The network of the newest checkpoint's averaged weights."""
    net = build_autoencoder(configure_autoencoder(SIZE, changes=TINY), 3, SIZE)
    net.load_state_dict(load_checkpoint(newest_complete(work_folder(out))).tensors["ema"])
    return net.eval()


def test_the_folder_is_diffusers_and_says_what_it_is(made: AutoencoderResult) -> None:
    record, folder = made.record, made.folder
    assert record is not None
    files = {path.name: path for path in folder.iterdir()}
    weights = files.pop("diffusion_pytorch_model.safetensors")
    assert set(files) == {"config.json", "training.json", "reconstructions.png", "log.jsonl"}
    assert record == AutoencoderRecord.load(folder / "training.json")
    assert record.weights == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.stat().st_mode == files["config.json"].stat().st_mode
    config = json.loads(files["config.json"].read_text())
    assert config["_class_name"] == "AutoencoderKL"
    assert config["scaling_factor"] == 1 / record.latents["std"]
    assert (config["shift_factor"], config["sample_size"]) == (None, SIZE)
    assert (record.steps, record.data["digest"]) == (120, IMAGES.train.digest)
    assert made.training is not None
    assert made.training.finished
    picture = read_image(folder / "reconstructions.png")
    assert picture.shape == (4 * (64 + 1) + 1, 8 * (64 + 1) + 1, 3)  # 16 pairs, 4 times as large
    first = IMAGES.held_out.images[0].transpose(1, 2, 0)
    assert (picture[1:65:4, 1:65:4] == first).all()


_LOAD = """
import sys
import numpy as np
import torch
from ddsm_ext._optional import import_diffusers

net = import_diffusers("test").AutoencoderKL.from_pretrained(sys.argv[1]).eval()
x = torch.from_numpy(np.load(sys.argv[2]))
with torch.no_grad():
    posterior = net.encode(x).latent_dist
    z = posterior.sample(torch.Generator().manual_seed(0)) * net.config.scaling_factor
    np.savez(sys.argv[3], z=z, mean=posterior.mean, decoded=net.decode(posterior.mean).sample)
"""


def test_another_process_loads_it_and_its_latents_have_unit_variance(
    made: AutoencoderResult, tmp_path: Path
) -> None:
    x = from_uint8(torch.from_numpy(IMAGES.train.images))
    np.save(tmp_path / "x.npy", x.numpy())
    files = [str(made.folder), str(tmp_path / "x.npy"), str(tmp_path / "found.npz")]
    subprocess.run([sys.executable, "-c", _LOAD, *files], check=True)
    found, net = np.load(tmp_path / "found.npz"), averaged(made.folder)
    with torch.no_grad():
        mean = net.encode(x).latent_dist.mean
        decoded = net.decode(mean).sample
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["decoded"], decoded, rtol=1e-4, atol=1e-4)
    assert found["z"].std() == pytest.approx(1.0, abs=0.01)


def test_scores_are_of_held_out_photographs_and_rise_with_training(
    made: AutoencoderResult, tmp_path: Path
) -> None:
    assert made.record is not None
    scores, images, net = made.record.scores, IMAGES.held_out.images, averaged(made.folder)
    with torch.no_grad():
        mean = net.encode(from_uint8(torch.from_numpy(images))).latent_dist.mean
        found = to_uint8(net.decode(mean).sample).numpy()
    errors = ((found.astype(float) - images) ** 2).mean((1, 2, 3))
    assert scores["psnr"] == pytest.approx((20 * np.log10(255 / errors**0.5)).mean(), abs=0.01)
    assert scores["images"] == 30
    assert scores["frechet"] is None  # 30 images say nothing of 320 features
    # what a network that learns nothing of an image could make: the mean of those of training
    middle = IMAGES.train.images.mean(0)
    plain = (20 * np.log10(255 / ((images - middle) ** 2).mean((1, 2, 3)) ** 0.5)).mean()
    early = make(tmp_path / "ae", steps=12).record
    assert early is not None
    assert early.scores["psnr"] + 3 < scores["psnr"]
    assert plain + 3 < scores["psnr"]


def test_the_same_call_again_does_nothing(made: AutoencoderResult) -> None:
    before = contents(made.folder.parent)
    again = make(made.folder, log_every=7)
    assert (again.record, again.training) == (made.record, None)
    assert contents(made.folder.parent) == before


def test_what_is_there_is_not_replaced(made: AutoencoderResult, tmp_path: Path) -> None:
    before = contents(made.folder.parent)
    with pytest.raises(ValueError, match=r"with lr 0\.005, now it is 0\.001; need .* another --ou"):
        make(made.folder, lr=1e-3)
    with pytest.raises(ValueError, match="holds an autoencoder of other images; need another --o"):
        make(made.folder, dataclasses.replace(IMAGES, train=dataset(50, 2)))
    assert contents(made.folder.parent) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="holds something else than an autoencoder"):
        make(tmp_path / "mine")
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.parametrize("name", ["", "/", "..", "a/.."])
def test_a_folder_needs_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="need the name of a folder"):
        make(Path(name))


def test_a_damaged_record_is_refused(made: AutoencoderResult, tmp_path: Path) -> None:
    copy = shutil.copytree(made.folder, tmp_path / "ae")
    text = (copy / "training.json").read_text()
    (copy / "training.json").write_text(text.replace('"steps": 120', '"steps": 121'))
    with pytest.raises(ValueError, match=r"training\.json: does not match its own SHA-256"):
        make(copy)


def test_killed_before_the_folder_has_its_name(
    made: AutoencoderResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "ae"

    class KilledError(Exception):
        pass

    def killed(target: Path, temp: Path, fill: Any) -> None:
        temp.mkdir()
        fill(temp)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_folder", killed)
        with pytest.raises(KilledError):
            make(out)
    assert not out.exists()
    again = make(out)
    assert again.record is not None
    assert contents(out)["config.json"] == contents(made.folder)["config.json"]
    assert (
        contents(out)["diffusion_pytorch_model.safetensors"]
        == (contents(made.folder)["diffusion_pytorch_model.safetensors"])
    )
    assert not (work_folder(out) / "whole").exists()


def test_interrupted_there_is_no_folder_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(title: str, done: int, *rest: Any) -> None:
        if (title, done) == ("training", 5):
            os.kill(os.getpid(), signal.SIGINT)

    config = configure_autoencoder(SIZE, changes={**TINY, "steps": 12})
    result = make_autoencoder(tmp_path / "ae", IMAGES, config, device="cpu", progress=stop)
    assert result.record is None
    assert result.training is not None
    assert result.training.interrupted
    assert os.listdir(tmp_path) == ["ae.training"]


def test_two_processes_are_never_in_one_folder(tmp_path: Path) -> None:
    work = work_folder(tmp_path / "ae")
    code = f"from ddsm_ext.io.lock import RunLock\nwith RunLock({str(work)!r}):\n print(1, flush=1)"
    code += "\n input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ValueError, match="is writing into it; need it to end first"):
            make(tmp_path / "ae")
        other.communicate(b"\n")
    with RunLock(work):
        assert contents(work) == {}


def test_without_diffusers_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = module.import_diffusers.__globals__["importlib"].util.find_spec
    absent = lambda name, *rest: None if name == "diffusers" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", absent)
    with pytest.raises(ImportError, match=r"pip install 'ddsm_ext\[diffusers\]'"):
        make(tmp_path / "ae")
    assert os.listdir(tmp_path) == []


def test_images_that_score_are_not_trained_on() -> None:
    images = load_autoencoder_images(DataConfig("digits"))
    assert (len(images.train), len(images.held_out)) == (1707, 90)
    both = np.concatenate([images.train.images, images.held_out.images]).reshape(1797, -1)
    assert len(np.unique(both, axis=0)) == 1797
    images = load_autoencoder_images(DataConfig("digits", held_out=0.5, limit=100))
    assert (len(images.train), len(images.held_out)) == (100, 898)
    with pytest.raises(ValueError, match=r"data\.split is 'all'; need 'train'"):
        load_autoencoder_images(DataConfig("digits", split="all"))


def test_settings_are_laid_over_a_preset() -> None:
    assert configure_autoencoder(32).factor == 2
    assert configure_autoencoder(64).factor == 4
    assert configure_autoencoder(64, "small-f8", {"steps": 7}).steps == 7
    for changes, said in (
        ({"stepz": 7}, "configure_autoencoder: unknown key stepz; did you mean steps"),
        ({"steps": "many"}, "configure_autoencoder: steps is 'many'; need a whole number"),
        ({"latent_channels": 4096}, "latent_channels is 4096; need at most 1024"),
    ):
        with pytest.raises(ValueError, match=said):
            configure_autoencoder(64, changes=changes)
    with pytest.raises(ValueError, match=r"preset is 'smal-f4'; .*did you mean small-f4"):
        configure_autoencoder(64, "smal-f4")
    with pytest.raises(ValueError, match=r"images are 30x30 .*need a multiple"):
        configure_autoencoder(30, "small-f4")


def test_estimates_are_of_the_network_that_is_built() -> None:
    config = configure_autoencoder(SIZE, changes={**TINY, "attention": True})
    net, macs, kept = build_autoencoder(config, 3, SIZE), 0, 0

    def count(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal macs, kept
        macs += output.numel() * layer.weight[0].numel()
        kept += inputs[0].nbytes  # what the layer's backward wants of an image

    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    net(torch.zeros(1, 3, SIZE, SIZE))
    macs += 2 * 2 * 16 * (SIZE // 2) ** 4  # two attentions, each of two products of its tokens
    takes = estimate_autoencoder(config, 3, SIZE)
    assert takes.parameters == sum(p.numel() for p in net.parameters())
    assert takes.macs == macs
    weights = 20 * takes.parameters
    assert weights + config.batch_size * kept < takes.n_bytes < weights + 16 * 8 * kept
    assert training_seconds(config, 3, SIZE) > 0


def test_what_the_memory_cannot_hold_is_refused() -> None:
    config = configure_autoencoder(512, changes={"batch_size": 2**16})
    with pytest.raises(ValueError, match=r"batch_size is 65536 with images of 512 .*smaller batch"):
        check_autoencoder_memory(config, 3, 512, CPU)
    check_autoencoder_memory(configure_autoencoder(32), 3, 32, CPU)


def test_psnr_of_known_errors() -> None:
    images = torch.full((3, 1, 4, 4), 100, dtype=torch.uint8)
    others = images.clone()
    others[0] += 1
    others[1, 0, 0, 0] = 0
    found = psnr(images, others)
    assert found[0] == pytest.approx(20 * np.log10(255))
    assert found[1] == pytest.approx(10 * np.log10(255**2 / (100**2 / 16)))
    assert found[2] == pytest.approx(10 * np.log10(255**2 * 16))


def test_made_small_is_pillows_bicubic() -> None:
    images = crops(4, 32, seed=3)
    for image, found in zip(images, made_small(torch.from_numpy(images), 4), strict=True):
        pixels = Image.fromarray(image.transpose(1, 2, 0))
        small = pixels.resize((8, 8), Image.Resampling.BICUBIC)
        wanted = np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert np.abs(found.numpy().astype(int) - wanted).max() <= 2


class Copy:
    """What encodes images to themselves, without doubt, and decodes them."""

    def encode(self, x: torch.Tensor) -> Any:
        nothing = torch.full_like(x, -30.0)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=x, logvar=nothing))

    def decode(self, z: torch.Tensor) -> Any:
        return SimpleNamespace(sample=z)


def test_a_copy_loses_nothing() -> None:
    images = load_autoencoder_images(DataConfig("digits", held_out=0.1)).held_out.images
    encoder = Encoder(Copy(), CPU, 64)
    scores = reconstruction_scores(encoder, images, 2, "digits-classifier")
    assert scores["images"] == len(images) == 180
    assert scores["psnr"] == pytest.approx(10 * np.log10(255**2 * 64))
    assert scores["bicubic_psnr"] < 20
    assert scores["features"] == "digits-classifier"
    assert scores["frechet"] == pytest.approx(0.0, abs=1e-6)
    values = images / 127.5 - 1.0
    mean, std = encoder.latent_moments(images)
    assert (mean, std) == pytest.approx((values.mean(), values.std()), rel=1e-4)
