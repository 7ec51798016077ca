"""An autoencoder of one's own images: trained, scored, and written as diffusers reads it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from ddsm_ext._optional import import_diffusers
from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import ImageDataset, load_dataset
from ddsm_ext.data.images import save_png
from ddsm_ext.data.splits import split_indices
from ddsm_ext.io.document import Document
from ddsm_ext.io.files import append_jsonl, read_bytes, read_log
from ddsm_ext.io.folder import write_folder
from ddsm_ext.io.lock import RunLock
from ddsm_ext.machine import machine_info
from ddsm_ext.run.autoencoder_scores import Encoder, reconstruction_scores
from ddsm_ext.run.compose import Progress, choose_device, counter
from ddsm_ext.run.features import stock_features
from ddsm_ext.run.presets import AUTOENCODER_PRESETS
from ddsm_ext.run.values import settings_from
from ddsm_ext.settings import Refusal, check_choice, completed
from ddsm_ext.training.autoencoder import train_autoencoder
from ddsm_ext.training.autoencoder_config import AutoencoderConfig
from ddsm_ext.training.session import TrainResult
from ddsm_ext.training.state import FREE_SETTINGS

RECORD_FILE = "training.json"
PICTURE_FILE = "reconstructions.png"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"  # beside config.json, as diffusers names it
HELD_OUT = 0.05  # share of the images that score, where the source has no test part of its own
SCORED = 1024  # held-out images at most that reconstructions are scored on
MEASURED = 4096  # training images at most whose latents are measured
_LARGEST_SMALL = 32  # pixels a side of images whose latents have half of that, not a quarter
# As `run.config.LIMITS`
_LIMITS = {
    "steps": 10**9, "batch_size": 2**20, "workers": 256, "keep": 10**6, "layers_per_block": 64,
    "latent_channels": 1024,
}  # fmt: skip


@dataclass(frozen=True)
class AutoencoderRecord(Document):
    """What an autoencoder was trained on and by, and what it does.

    Args:
        settings: the `AutoencoderConfig`.
        data: name, digest, number and shape of the images that it was trained on.
        steps: of the training.
        latents: mean and standard deviation of the latents of `images` training images, before
            they are scaled.
        scores: as of `reconstruction_scores`, of held-out images.
        weights: SHA-256 of the file of weights.
        versions: of the packages that made it.
    """

    what: ClassVar[str] = "record of an autoencoder's training"

    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    steps: int
    latents: Mapping[str, Any]
    scores: Mapping[str, Any]
    weights: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class AutoencoderResult:
    """How a call of `make_autoencoder` ended.

    Args:
        folder: of the autoencoder; absent until its training is done.
        record: of the autoencoder; None: a signal asked to stop, and all is saved.
        training: of this call; None: the autoencoder was there.
    """

    folder: Path
    record: AutoencoderRecord | None
    training: TrainResult | None


@dataclass(frozen=True)
class AutoencoderImages:
    """Images that an autoencoder is trained on, and others that score it."""

    source: str
    train: ImageDataset
    held_out: ImageDataset


def load_autoencoder_images(
    config: DataConfig, progress: Progress | None = None
) -> AutoencoderImages:
    """Read the images of an autoencoder.

    Args:
        config: of the images; where nothing is held out and the source has no test part of its own,
            HELD_OUT of them are.
        progress: told how far it is.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: as of `load_dataset`, or the split is not that for training.
    """
    if config.split != "train":
        raise Refusal(f"data.split is {config.split!r}; need 'train': the others are held out")
    config = replace(config, held_out=config.held_out or HELD_OUT)
    train = load_dataset(config, counter(progress, "reading images", "image"))
    test = replace(config, split="test", limit=SCORED)
    held_out = load_dataset(test, counter(progress, "reading held-out images", "image"))
    return AutoencoderImages(config.source, train, held_out)


def configure_autoencoder(
    image_size: int,
    preset: str | None = None,
    changes: Mapping[str, Any] | None = None,
    where: str = "configure_autoencoder",
) -> AutoencoderConfig:
    """Return the settings of an autoencoder, changes laid over a preset.

    Args:
        image_size: pixels a side.
        preset: one of AUTOENCODER_PRESETS; None takes small-f2 for images of 32 pixels or less, and
            small-f4 for larger ones.
        changes: key -> value.
        where: what errors call the changes.

    Raises:
        ValueError: the preset or a key is unknown, a value is refused, or the size is no multiple
            of the factor.
    """
    if preset is None:
        preset = "small-f2" if image_size <= _LARGEST_SMALL else "small-f4"
    values = AUTOENCODER_PRESETS[check_choice("preset", preset, AUTOENCODER_PRESETS)]
    made = settings_from(AutoencoderConfig, {**values, **(changes or {})}, where, most=_LIMITS)
    assert isinstance(made, AutoencoderConfig)
    made.check_size(image_size)
    return made


def build_autoencoder(
    config: AutoencoderConfig, image_channels: int, image_size: int, what: str = "autoencoder"
) -> Any:
    """Return a freshly initialised AutoencoderKL of diffusers; its weights derive from `seed`.

    Args:
        config: of the autoencoder.
        image_channels: 1 or 3.
        image_size: pixels a side.
        what: what errors call what needs it.

    Raises:
        ImportError: diffusers is not installed, or too old.
    """
    diffusers, levels = import_diffusers(what), len(config.block_out_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return diffusers.AutoencoderKL(
            in_channels=image_channels,
            out_channels=image_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            sample_size=image_size,
            mid_block_add_attention=config.attention,
        )


def work_folder(out: str | Path) -> Path:
    """Return the folder beside an autoencoder's in which it is trained."""
    path = Path(out)
    return path.with_name(f"{path.name}.training")


def check_out(out: str | Path) -> None:
    """Refuse, before any work, a folder that holds something else than an autoencoder.

    Raises:
        ValueError: it does, or it is none.
    """
    path = Path(out)
    if not path.name or path.name == "..":
        raise Refusal(f"out is {out}; need the name of a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / RECORD_FILE).exists():
        raise Refusal(f"{path}: holds something else than an autoencoder; need another --out")


def make_autoencoder(
    out: str | Path,
    images: AutoencoderImages,
    config: AutoencoderConfig,
    *,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> AutoencoderResult:
    """Train an autoencoder and write it; the same call goes on with one that was interrupted.

    It is trained in the folder `<out>.training`, with the checkpoints, log.jsonl and pictures of
    its training. `out` is made once that is done: config.json and the averaged weights as
    diffusers' save_pretrained writes them, with a `scaling_factor` of 1 / standard deviation of the
    latents; training.json, log.jsonl and a picture of held-out images beside what becomes of them.

    Args:
        out: folder to make.
        images: to train on and to score by.
        config: of the autoencoder; see `configure_autoencoder`.
        device: where to train; None takes a GPU where there is one.
        progress: told how far it is; None for silence.

    Raises:
        ImportError: diffusers is not installed, or too old.
        NonFiniteError: losses or gradients stayed inf or NaN.
        ValueError: `out` holds something else, or what was begun has other settings or images.

    Source: Rombach et al. 2022 (arXiv 2112.10752), appendix G; their scale is of a first batch.
    """
    check_out(out)
    out, work = Path(out), work_folder(out)
    if (out / RECORD_FILE).exists():
        return AutoencoderResult(out, _same_record(out, images, config), None)
    device, (channels, size, _) = choose_device(device), images.train.shape
    config.check_size(size)
    net = build_autoencoder(config, channels, size)
    with RunLock(work):
        encoder = Encoder(net, device, config.batch_size)
        training = train_autoencoder(
            net,
            images.train,
            config,
            work,
            device=device,
            pictures={"reconstructions": lambda _: encoder.picture(images.held_out.images)},
            progress=_told(progress),
        )
        if not training.finished:
            return AutoencoderResult(out, None, training)
        record = _finish(out, work, images, config, encoder, progress)
    return AutoencoderResult(out, record, training)


def _told(progress: Progress | None) -> Any:
    update = counter(progress, "training", "step")

    def tell(done: int, total: int, row: dict[str, Any]) -> None:
        error = row.get("l1")
        update(done, total, "" if error is None else f"l1={error:.4f}")

    return tell


def _same_record(
    out: Path, images: AutoencoderImages, config: AutoencoderConfig
) -> AutoencoderRecord:
    """The record of an autoencoder that is there, if it is the one that is asked for."""
    record = AutoencoderRecord.load(out / RECORD_FILE)
    if record.data.get("digest") != images.train.digest:
        raise Refusal(f"{out}: holds an autoencoder of other images; need another --out")
    saved, now = completed(dict(record.settings), config), config.to_dict()
    for name, value in now.items():
        if name not in FREE_SETTINGS and saved.get(name) != value:
            raise Refusal(
                f"{out}: holds an autoencoder with {name} {saved.get(name)!r}, now it is "
                f"{value!r}; need the same, or another --out"
            )
    return record


def _finish(
    out: Path,
    work: Path,
    images: AutoencoderImages,
    config: AutoencoderConfig,
    encoder: Encoder,
    progress: Progress | None,
) -> AutoencoderRecord:
    """Measure and score a trained autoencoder, and write its folder."""
    train, held_out = images.train, images.held_out
    sample = train.images
    if len(sample) > MEASURED:
        sample = sample[split_indices(len(sample), MEASURED / len(sample), config.seed)[1]]
    mean, std = encoder.latent_moments(sample, progress)
    if not std > 0:
        raise Refusal(f"{work}: all latents are {mean:g}; need images that differ")
    encoder.net.register_to_config(scaling_factor=1.0 / std)
    features = stock_features(images.source, train.shape)
    scores = reconstruction_scores(encoder, held_out.images, config.factor, features, progress)
    about: dict[str, Any] = {
        "settings": config.to_dict(),
        "data": {
            "name": train.name, "digest": train.digest, "images": len(train),
            "shape": list(train.shape), "flips": train.flips,
        },
        "steps": config.steps,
        "latents": {"mean": mean, "std": std, "images": len(sample)},
        "scores": scores,
        "versions": {
            **machine_info(command=False)["versions"],
            "diffusers": import_diffusers("autoencoder").__version__,
        },
    }  # fmt: skip
    picture = encoder.picture(held_out.images)

    def fill(folder: Path) -> AutoencoderRecord:
        encoder.net.to("cpu", memory_format=torch.contiguous_format)
        encoder.net.save_pretrained(folder, safe_serialization=True)
        # safetensors lets the owner alone read its files
        shutil.copymode(folder / "config.json", folder / WEIGHTS_FILE)
        weights = hashlib.sha256(read_bytes(folder / WEIGHTS_FILE, "file of weights")).hexdigest()
        record = AutoencoderRecord(weights=weights, **about)
        record.save(folder / RECORD_FILE)
        save_png(folder / PICTURE_FILE, picture)
        append_jsonl(folder / "log.jsonl", *read_log(work / "log.jsonl"))
        return record

    return write_folder(out, work / "whole", fill)
