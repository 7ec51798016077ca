"""Device, network and sampler of a run's configuration, and how far their work is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ddsm_ext.data.codec import Codec, Decoder, PixelCodec
from ddsm_ext.diffusion.noise import normal
from ddsm_ext.diffusion.prediction import prediction_of
from ddsm_ext.diffusion.schedule import NoiseSchedule, make_schedule
from ddsm_ext.graph.count import macs
from ddsm_ext.run.classes import labels_of
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.latents import check_images
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.images import sample
from ddsm_ext.sampling.levels import evaluations
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal, check_choice, shown

OVERHEAD_STEPS = 20  # of the sampler whose own work is timed
# (what is being done, units done, units in all or None where unknown, name of a unit, remark)
Progress = Callable[[str, int, int | None, str, str], None]


def counter(progress: Progress | None, title: str, unit: str) -> Callable[..., None]:
    """Return a callback (done, total, remark="") that tells of one title; silent for None."""

    def update(done: int, total: int | None, remark: str = "") -> None:
        if progress is not None:
            progress(title, done, total, unit, remark)

    return update


def choose_device(name: torch.device | str | None, what: str = "device") -> torch.device:
    """Return where to compute.

    Args:
        name: "cpu", "cuda" or "cuda:N"; "auto" and None take a GPU where there is one.
        what: what errors call it.

    Raises:
        ValueError: the name is unknown or this machine has no such device.
    """
    text = "auto" if name is None else str(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return torch.device("cuda" if count else "cpu")
    kind, _, index = text.partition(":")
    named = kind in ("cpu", "cuda") and (not index or (index.isdecimal() and len(index) < 5))
    if not named or (kind == "cpu" and int(index or 0)):
        raise Refusal(f"{what} is {shown(text)}; need auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= count:
        raise Refusal(f"{what} is {text!r}, there are {count} CUDA devices; use cpu")
    return torch.device(text)


def build_network(config: RunConfig, device: torch.device) -> Any:
    """Return a freshly initialised network; its weights derive from train.seed."""
    from ddsm_ext.models.network import SlimmableNetwork

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return SlimmableNetwork(config.model, device="cpu", dtype=torch.float32).to(device)


def weights_of(config: RunConfig) -> tuple[str, ...]:
    """Return which weights a run has: "ema" (averaged over training), "model" (the last step's),
    and an average for each of `train.ema_lengths`."""
    from ddsm_ext.training.ema import average_name

    return ("ema", "model", *map(average_name, config.train.ema_lengths))


def weights_identity(config: RunConfig) -> dict[str, Any]:
    """Return the settings that the weights of a run belong to, as a checkpoint keeps them."""
    from ddsm_ext.training.state import process_identity

    process = process_identity(make_schedule(config.diffusion), config.diffusion.parameterisation)
    return {**process, **weights_settings(config)}


def weights_settings(config: RunConfig) -> dict[str, Any]:
    """Return the sections among these."""
    codec = {"codec": config.codec.identity} if config.codec.of_latents else {}
    return {"model": config.model, "diffusion": config.diffusion, **codec}


def load_network(
    run: Path,
    config: RunConfig,
    device: torch.device,
    weights: str = "ema",
    dtype: torch.dtype = torch.float32,
    step: int | None = None,
) -> Any:
    """Return the network of a run's newest whole checkpoint, in eval mode.

    Args:
        weights: one of `weights_of(config)`.
        step: of another checkpoint; None takes the newest whole one.

    Raises:
        FileNotFoundError: the run has no checkpoint yet.
        ValueError: the checkpoint lacks these weights, or holds those of another network or another
            diffusion process.
    """
    from ddsm_ext.io.checkpoint import checkpoint_path, load_checkpoint, load_newest
    from ddsm_ext.io.weights import copy_tensors
    from ddsm_ext.training.state import check_identity

    check_choice("weights", weights, weights_of(config))
    if step is None:
        checkpoint = load_newest(run, (weights,))
    else:
        checkpoint = load_checkpoint(checkpoint_path(run, step), (weights,))
    if checkpoint is None:
        raise FileNotFoundError(f"{run}: has no whole checkpoint; need ddsm train first")
    made = checkpoint.state.get("identity", {})
    wanted = {name: value for name, value in weights_identity(config).items() if name in made}
    where = str(checkpoint.path)
    check_identity({name: made[name] for name in wanted}, wanted, where)
    network = build_network(config, torch.device("cpu"))
    copy_tensors(checkpoint.tensors[weights], network.state_dict(), f"{where}: {weights}")
    return network.to(device, dtype).eval()


def decoder_of(config: RunConfig, device: torch.device) -> Decoder:
    """Return what makes images of those of a run's network.

    Raises:
        ImportError: it decodes latents, and diffusers is not installed.
        FileNotFoundError: the autoencoder is gone.
        ValueError: it is another one, or damaged, or latents have none.
    """
    codec = config.codec
    if not codec.of_latents:
        check_images(config)
        return PixelCodec()
    return Codec.load(str(codec.folder), device, expected=codec, what="a run of latents")


def check_sampler(config: RunConfig) -> None:
    """Refuse a sampler that does not serve the process, or its number of steps, and latents that
    nothing decodes.

    Raises:
        ImportError, FileNotFoundError: as of `decoder_of`.
        ValueError: naming what does not fit.
    """
    evaluations(make_schedule(config.diffusion), config.sampler)
    decoder_of(config, torch.device("cpu"))


def weights_digest(network: Any) -> str:
    """Return the SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Sampler:
    """A network with everything that sampling from it needs.

    Args:
        network: called as network(x, t, width), with labels as network(x, t, width, y); computes
            in the dtype of its weights.
        config: the run's configuration; its sampler section decides kind and steps.
        device: where the network is.
        batch_size: images that run together.
        progress: told how far long work is; None for silence.
        decoder: makes images of the network's.
    """

    network: Any
    config: RunConfig
    device: torch.device
    batch_size: int
    progress: Progress | None = None
    decoder: Decoder = field(default_factory=PixelCodec)
    schedule: NoiseSchedule = field(init=False)

    def __post_init__(self) -> None:
        self.schedule = make_schedule(self.config.diffusion)

    @classmethod
    def for_run(
        cls,
        run: Path,
        config: RunConfig,
        device: torch.device,
        batch_size: int,
        progress: Progress | None,
        weights: str = "ema",
    ) -> Self:
        """Return the sampler of a run's newest checkpoint, in the dtype of `sampler.dtype`."""
        dtype = getattr(torch, config.sampler.dtype)
        network = load_network(run, config, device, weights, dtype)
        decoder = decoder_of(config, device)
        return cls(network, config, device, batch_size, progress, decoder)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image of the network."""
        model = self.config.model
        return (model.image_channels, model.image_size, model.image_size)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights, in which it computes."""
        return next(self.network.parameters()).dtype

    @property
    def class_count(self) -> int:
        """How many classes the images are of in turn; 1: the network takes no labels."""
        return len(self.config.sampler.classes) or self.config.model.label_count or 1

    def labels(self, seeds: Sequence[int]) -> list[int] | None:
        """Return the class of each seed's image; None: the network takes no labels."""
        count = self.config.model.label_count
        return labels_of(seeds, self.config.sampler.classes, count) if count else None

    def images(
        self,
        strategy: Strategy | float,
        seeds: list[int],
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Return float images [N, C, H, W], one a seed, not clipped to [-1, 1]; or latents."""
        return self._sample(self.network, self.config.sampler, strategy, seeds, progress)

    def pictures(
        self,
        strategy: Strategy | float,
        seeds: list[int],
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Return uint8 images [N, C, H, W] on the CPU, one a seed; each batch is decoded as it is
        done."""
        settings, finish = self.config.sampler, self.decoder.decode
        return self._sample(self.network, settings, strategy, seeds, progress, finish)

    def features(
        self, strategy: Strategy | float, seeds: list[int], extractor: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return features [N, D] on the CPU of `pictures`, of which no more than a batch is held.

        Args:
            strategy: width by noise level.
            seeds: of the images.
            extractor: uint8 [n, C, H, W] -> features [n, D].
        """

        def finish(images: Tensor) -> Tensor:
            return extractor(self.decoder.decode(images)).cpu()

        settings = self.config.sampler
        return self._sample(self.network, settings, strategy, seeds, finish=finish)

    def _sample(
        self,
        network: Any,
        settings: SamplerConfig,
        strategy: Strategy | float,
        seeds: list[int],
        progress: Callable[[int, int], None] | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        return sample(
            network,
            self.schedule,
            strategy,
            seeds,
            self.shape,
            settings,
            labels=self.labels(seeds),
            null_label=self.config.model.null_label,
            parameterisation=prediction_of(self.config.diffusion),
            batch_size=self.batch_size,
            device=self.device,
            dtype=self.dtype,
            progress=progress,
            finish=finish,
        )

    def timed_images(
        self, strategy: Strategy | float, seeds: list[int], title: str
    ) -> tuple[Tensor, float]:
        """Return uint8 images [N, C, H, W] and the ms an image that they took, decoded."""
        if len(seeds) > 1:
            self.pictures(strategy, seeds[:1])  # first calls allocate and choose kernels
        started = time.perf_counter()
        images = self.pictures(strategy, seeds, counter(self.progress, title, "step"))
        seconds = time.perf_counter() - started
        return images, 1e3 * seconds / len(seeds)

    def decode_ms(self, rounds: int = 3) -> float:
        """Return the ms that decoding an image takes: the least of some rounds; 0 of pixels."""
        codec = self.config.codec
        if not codec.of_latents:
            return 0.0
        latents = normal(range(codec.batch_size), 0, self.shape, device=self.device)
        times = []
        for _ in range(rounds + 1):  # the first one warms up
            started = time.perf_counter()
            self.decoder.decode(latents)  # to the CPU, which waits for it
            times.append(time.perf_counter() - started)
        return 1e3 * min(times[1:]) / codec.batch_size

    def overhead_ms(self, rounds: int = 3) -> float:
        """Return the ms of an image and evaluation that the sampler takes itself: the least of some
        rounds with a network that returns its input."""
        settings = self.config.sampler
        steps = min(settings.steps or self.schedule.timesteps, OVERHEAD_STEPS)
        settings, seeds = replace(settings, steps=steps), list(range(self.batch_size))
        count, learned = len(evaluations(self.schedule, settings)), settings.variance == "learned"

        def network(x: Tensor, t: Tensor, width: float, *labels: Tensor) -> Tensor:
            return torch.cat([x, x], dim=1) if learned else x

        times = []
        for _ in range(rounds + 1):  # the first one warms up
            started = time.perf_counter()
            self._sample(network, settings, 1.0, seeds)
            self.finish()
            times.append(time.perf_counter() - started)
        return 1e3 * min(times[1:]) / (count * len(seeds))

    def finish(self) -> None:
        """Return when the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def macs_per_image(self, strategy: Strategy | float) -> int:
        """Return the MACs of one image over all steps of the sampler, decoding included."""
        steps = evaluations(self.schedule, self.config.sampler, strategy)
        runs = [width for step in steps for width in step.widths]
        each = {width: macs(self.config.model, width) for width in {*runs}}
        return sum(each[width] for width in runs) + self.config.codec.decode_macs
