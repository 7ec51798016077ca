"""A run as a folder that the stock pipelines of diffusers load: network, scheduler, autoencoder."""

from __future__ import annotations

import itertools
import logging
import math
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddsm_ext._optional import import_diffusers
from ddsm_ext.data.codec import Codec
from ddsm_ext.io.folder import write_folder
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.diffusers_schedulers import Scheduler, scheduler_of
from ddsm_ext.run.latents import check_images
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal

log = logging.getLogger(__name__)
INDEX = "model_index.json"
_ROUNDING = 1.0  # of timesteps
_SAME_SIGMA = 1e-2  # of its size


def export_pipeline(
    load: Callable[[], Any],
    config: RunConfig,
    folder: Path,
    *,
    strategy: Strategy,
    width: float | None = None,
    autoencoder: str | Path | None = None,
) -> Path:
    """Write a pipeline that samples with a network; returns its folder.

    Args:
        load: returns the slimmable network.
        config: of its run.
        folder: new, empty, or with a pipeline, which is replaced.
        strategy: which width a noise level has.
        width: write this width alone, as a `UNet2DModel`; None: all, as a `SlimmableUNet2D`.
        autoencoder: folder of the one that decodes what the network makes; None takes the run's,
            where it has one, and else the network makes images. What LDMPipeline does not know of
            its latents, a shift, is put into its weights.

    Raises:
        ImportError: diffusers is not installed, or too old.
        FileNotFoundError: there is no such autoencoder.
        ValueError: diffusers has no such network, scheduler or pipeline, or the folder holds
            something else.
    """
    diffusers = import_diffusers("ddsm export --to diffusers")
    if folder.exists() and not (folder / INDEX).is_file() and any(folder.iterdir()):
        raise Refusal(f"export: {folder} holds other files; need a new folder, or a pipeline's")
    autoencoder = autoencoder or config.codec.folder
    if autoencoder is None:
        check_images(config, ", or an autoencoder (ddsm export --autoencoder)")
    elif Path(autoencoder).resolve().is_relative_to(folder.resolve()):
        raise Refusal(f"export: {folder} holds the autoencoder {autoencoder}; need another folder")
    scheduler = scheduler_of(config, latents=autoencoder is not None)
    parts = {} if autoencoder is None else {"vqvae": _autoencoder(config, autoencoder)}
    parts["scheduler"] = _scheduler(diffusers, scheduler, config)
    if width is None:
        from ddsm_ext.compat.slimmable_unet2d import SlimmableUNet2D

        parts["unet"] = SlimmableUNet2D.from_network(load(), strategy, config.diffusion)
    else:
        parts["unet"] = _plain(diffusers, load(), config, width)
    pipeline = getattr(diffusers, scheduler.pipeline)(**parts)
    place = folder.resolve()
    temp = place.parent / f".new-{place.name}-{os.getpid()}-{secrets.token_hex(4)}"
    write_folder(place, temp, pipeline.save_pretrained, replace=True)
    notes = [*scheduler.notes]
    if config.sampler.restart_on_width_change and width is None and len({*strategy.widths}) > 1:
        notes.append(
            "its scheduler goes on where the width changes; the run's sampler starts again there "
            "(sampler.restart_on_width_change)"
        )
    for note in notes:
        log.warning("%s", note)
    call = ", ".join(f"{name}={value!r}" for name, value in scheduler.call.items())
    first = "import ddsm_ext; " if width is None else ""  # diffusers asks it for the class
    log.info('%s%s.from_pretrained("%s")(%s)', first, scheduler.pipeline, folder, call)
    return folder


def _scheduler(diffusers: Any, scheduler: Scheduler, config: RunConfig) -> Any:
    """The scheduler; says so where it visits other noise levels than the run's sampler."""
    from ddsm_ext.diffusion.schedule import make_schedule
    from ddsm_ext.sampling.levels import noise_levels

    made = getattr(diffusers, scheduler.name)(**scheduler.settings)
    made.set_timesteps(scheduler.call["num_inference_steps"])
    levels = noise_levels(make_schedule(config.diffusion), config.sampler)
    row = config.diffusion.parameterisation
    if row in ("edm", "flow"):
        what = "noise levels" if row == "edm" else "shares of noise"
        ours, theirs = [level.sigma for level in levels[:-1]], made.sigmas.tolist()[:-1]
        _compare(scheduler.name, what, theirs, ours, rel_tol=_SAME_SIGMA)
        return type(made).from_config(made.config)
    visited = made.timesteps.tolist()
    if visited[:1] == visited[1:2]:
        raise Refusal(
            f"export: {scheduler.name} rounds its first two timesteps to {visited[0]:g} and loses "
            f"count; need a sampler.spacing other than {config.sampler.spacing!r}"
        )
    theirs = list(dict.fromkeys(visited))  # Heun's names each twice
    ours = [level.t for level in levels[:-1]]
    _compare(scheduler.name, "timesteps", theirs, ours, abs_tol=_ROUNDING)
    return type(made).from_config(made.config)


def _compare(
    name: str, what: str, theirs: Sequence[float], ours: Sequence[float], **close: float
) -> None:
    """Say so where some are not close, as of `math.isclose`."""
    pairs = itertools.zip_longest(ours, theirs, fillvalue=-math.inf)
    if not all(math.isclose(a, b, **close) for a, b in pairs):
        texts = _text(theirs), _text(ours)
        log.warning("%s visits the %s %s, the run's sampler %s", name, what, *texts)


def _text(numbers: Sequence[float]) -> str:
    """ "999, 949 ... 49" """
    return f"{', '.join(f'{x:.4g}' for x in numbers[:2])} ... {numbers[-1]:.4g}"


def _plain(diffusers: Any, network: Any, config: RunConfig, width: float) -> Any:
    """One width as a `UNet2DModel`."""
    from ddsm_ext.compat.unet2d_width import to_unet2d

    diffusion = config.diffusion
    scale = 1000 / diffusion.timesteps if diffusion.rescale_timesteps else 1.0
    counted = diffusion.parameterisation in ("epsilon", "x0", "v")
    timesteps = diffusion.timesteps if counted else None
    settings, state = to_unet2d(network, width, timesteps=timesteps, time_scale=scale)
    unet = diffusers.UNet2DModel(**settings)
    unet.load_state_dict(state)
    return unet.eval()


def _autoencoder(config: RunConfig, folder: str | Path) -> Any:
    """The autoencoder of a run's latents, with the scale that the pipeline takes off them."""
    expected = config.codec if config.codec.of_latents else None
    codec = Codec.load(folder, expected=expected, what="ddsm export --to diffusers")
    if codec.latent_channels != config.model.image_channels:
        raise Refusal(
            f"export: {folder} decodes {codec.latent_channels} channels, the network makes "
            f"{config.model.image_channels}; need the autoencoder that it was trained with"
        )
    network: Any = codec.network
    if codec.config.shift:
        _take_shift(network, codec)
    network.register_to_config(scaling_factor=codec.config.scale)
    return network


def _take_shift(network: Any, codec: Codec) -> None:
    """Move an autoencoder's latents by their shift, exactly, as LDMPipeline takes off none."""
    before, after = (getattr(network, f"{when}quant_conv", None) for when in ("", "post_"))
    if before is None or after is None or network.config.get("norm_type") == "spatial":
        raise Refusal(
            f"export: the latents have a shift of {codec.config.shift:g}; need 0, as LDMPipeline "
            "takes off none and the autoencoder has no layers that could"
        )
    shift = codec.config.shift
    before.bias.data[: codec.latent_channels] -= shift  # of a KL the means
    after.bias.data += after.weight.sum(dim=(1, 2, 3)) * shift
    if codec.config.kind == "vq":
        network.quantize.embedding.weight.data -= shift
    else:
        network.register_to_config(shift_factor=None)
