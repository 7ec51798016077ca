"""Runs made of a U-Net of diffusers, with the process and the sampler of its scheduler."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ddsm_ext.io.files import read_json
from ddsm_ext.run.config import RunConfig, merge
from ddsm_ext.run.diffusers_schedulers import read_scheduler
from ddsm_ext.run.folder import run_name
from ddsm_ext.run.importing import check_changes, new_run
from ddsm_ext.run.latents import with_latents
from ddsm_ext.run.strategies import keep_strategy
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import MissingLibrary, Refusal

log = logging.getLogger(__name__)
_FILE = "scheduler_config.json"


def import_unet(
    source: str | Path,
    root: str | Path,
    *,
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
    where: str = "changes",
) -> Path:
    """Make a run of a `UNet2DModel`, or of a `SlimmableUNet2D`, and return its folder.

    A `UNet2DModel` is its full width; narrower ones want a training. diffusers is needed for the
    autoencoder of a pipeline of latents alone; codec.kind "pixels" leaves that out.

    Args:
        source: folder of a pipeline or of a model, as `save_pretrained` writes them.
        root: folder of runs; made when missing.
        name: of the run; None takes the folder's.
        changes: section -> key -> value of the run's configuration.
        where: what errors call the changes.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ImportError: the pipeline has an autoencoder and diffusers is not installed.
        ValueError: network, scheduler, autoencoder or changes are refused.
    """
    from ddsm_ext.compat.diffusers import load_diffusers, part_of
    from ddsm_ext.compat.unet2d_config import SLIMMABLE

    folder, changes = Path(source), changes or {}
    network = load_diffusers(folder)
    content = read_json(part_of(folder, "unet") / "config.json")
    ours = content if content.get("_class_name") == SLIMMABLE else {}
    check_changes(changes, where, "folder")
    values = {"model": network.config.to_dict(), "data": {"source": "images"}}
    file = part_of(folder, "scheduler") / _FILE
    if file.is_file():
        values["diffusion"], values["sampler"] = read_scheduler(read_json(file), str(file))
    else:
        log.warning("%s: has no %s; linear betas are taken", folder, _FILE)
    if ours.get("schedule"):
        values["diffusion"] = ours["schedule"]
    codec = with_latents(merge(values, changes)).get("codec", {})
    if isinstance(codec, Mapping):
        if "kind" not in codec:  # neither of an archive of latents nor by hand
            codec = values["codec"] = _codec(folder / "vqvae", network.config)
        clips = values.get("sampler", {}).get("clip_denoised")
        if clips and codec.get("kind", "pixels") != "pixels":
            log.warning("%s: clip_sample is true; the latents of the run are not clipped", file)
            values["sampler"]["clip_denoised"] = False
    config = RunConfig.from_dict(with_latents(merge(values, changes)), where)
    tensors = {key: tensor.float().contiguous() for key, tensor in network.state_dict().items()}
    run = new_run(root, name or run_name(folder), config, tensors, 0, source)
    if ours.get("strategy"):
        keep_strategy(run, config, Strategy.from_dict(ours["strategy"]))
    return run


def _codec(folder: Path, model: Any) -> dict[str, Any]:
    """The section codec by the autoencoder of a pipeline; empty where it has none.

    LDMPipeline takes off the scale that its config says, whatever the class, and no shift.
    """
    if not folder.is_dir():
        return {}
    from ddsm_ext.data.codec import Codec

    without = "or codec.kind=pixels, which leaves the autoencoder out"
    try:
        codec = Codec.load(folder, what="the autoencoder of a pipeline")
    except MissingLibrary as error:
        raise MissingLibrary(f"{error}; {without}") from None
    except (Refusal, FileNotFoundError) as error:
        raise Refusal(f"{error}; {without}") from None
    if codec.latent_channels != model.image_channels:
        raise Refusal(
            f"{folder}: decodes {codec.latent_channels} channels, the network makes "
            f"{model.image_channels}; need the autoencoder that it was trained with"
        )
    found = codec.settings_for(model.image_size * codec.config.factor)
    scale = cast(Any, codec.network).config.scaling_factor or found.scale
    return replace(found, scale=float(scale), shift=0.0).to_dict()
