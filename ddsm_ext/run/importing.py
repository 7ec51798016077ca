"""Runs made of weights from elsewhere: an official checkpoint, or the files of an index."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddsm_ext.io.weights import INDEX_ENDING
from ddsm_ext.run.config import LIMITS, RunConfig, merge, preset_values
from ddsm_ext.run.folder import create_run, run_name
from ddsm_ext.settings import Refusal, TypeRefusal, check_choice, is_int, plain, shown

# sections that an official checkpoint and its flags decide
FIXED_SECTIONS = ("model", "diffusion")
# EDM's preconditioners, and the noise levels that networks under each are trained for (Karras et
# al. 2022, table 1)
_PRECONDITIONERS: dict[str, dict[str, float]] = {
    "edm": {},
    "vp": {"sigma_min": 0.002, "sigma_max": 80.0},
    "ve": {"sigma_min": 0.02, "sigma_max": 100.0},
}
log = logging.getLogger(__name__)


def import_official(
    source: str | Path,
    root: str | Path,
    *,
    flags_file: str | Path | None = None,
    groups: int | None = None,
    group: str = "",
    name: str = "official",
    changes: Mapping[str, Any] | None = None,
    where: str = "changes",
) -> Path:
    """Make a run of a checkpoint that the official DDSM code wrote and return its folder.

    Args:
        source: the checkpoint (.pt).
        root: folder of runs; made when missing.
        flags_file: flag file that the checkpoint came with: network, process and variance of the
            sampler; None takes the official defaults.
        groups: of its GroupNorm; None takes the flags', else 32.
        group: weights to take of a checkpoint with several: "ema_model" or "net_model", or as they
            are called there; "" takes the first of these two that is there.
        name: of the run.
        changes: section -> key -> value of the run's configuration.
        where: what errors call the changes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: checkpoint, flags or changes are refused.
    """
    from ddsm_ext.compat.official_ddsm import load_official_ddsm, official_config
    from ddsm_ext.compat.official_strategy import (
        parse_official_flags,
        parse_official_process,
        read_text,
    )

    changes = changes or {}
    said_by = "flags" if flags_file is None else str(flags_file)
    text = "" if flags_file is None else read_text(flags_file)
    flags = parse_official_flags(text, source=said_by)
    diffusion, sampler = parse_official_process(text, source=said_by)
    if groups is not None:
        flags["groups"] = groups
    try:
        official_config(flags)
    except Refusal as error:
        raise Refusal(f"{said_by}: {error}") from None
    network = load_official_ddsm(source, flags, group=group)
    check_changes(changes, where, "checkpoint")
    values = preset_values("cifar10")
    values["model"] = network.config.to_dict()
    values["diffusion"], values["sampler"] = diffusion.to_dict(), sampler.to_dict()
    config = RunConfig.from_dict(merge(values, changes), where)
    tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    return new_run(root, name, config, tensors, 0, source)


def import_guided_diffusion(
    source: str | Path,
    root: str | Path,
    *,
    flags_file: str | Path | None = None,
    code: str = "guided-diffusion",
    group: str = "",
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
    where: str = "changes",
) -> Path:
    """Make a run of a checkpoint of guided-diffusion or improved-diffusion and return its folder.

    Its full width is the network of the checkpoint; narrower ones want a training.

    Args:
        source: the checkpoint (.pt or .safetensors).
        root: folder of runs; made when missing.
        flags_file: text with the flags that the checkpoint came with (MODEL_FLAGS of its page, and
            those of process and sampler); None takes the defaults of the scripts.
        code: "guided-diffusion" or "improved-diffusion", whose defaults count.
        group: weights to take of a file with several networks.
        name: of the run; None takes the file's.
        changes: section -> key -> value of the run's configuration.
        where: what errors call the changes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: checkpoint, flags or changes are refused.
    """
    from ddsm_ext.compat.guided_diffusion import load_guided_diffusion
    from ddsm_ext.compat.guided_diffusion_flags import parse_guided_diffusion_flags
    from ddsm_ext.compat.official_strategy import read_text

    changes = changes or {}
    said_by = "flags" if flags_file is None else str(flags_file)
    text = "" if flags_file is None else read_text(flags_file)
    flags = parse_guided_diffusion_flags(text, source=said_by, code=code)
    network = load_guided_diffusion(source, flags.unet, group=group)
    check_changes(changes, where, "checkpoint")
    values = {
        "model": network.config.to_dict(),
        "diffusion": flags.diffusion.to_dict(),
        "sampler": flags.sampler.to_dict(),
        "data": {"source": "images"},
    }
    config = RunConfig.from_dict(merge(values, changes), where)
    tensors = {key: tensor.float().contiguous() for key, tensor in network.state_dict().items()}
    return new_run(root, name or run_name(source), config, tensors, 0, source)


def import_edm(
    source: str | Path,
    root: str | Path,
    *,
    flags_file: str | Path,
    group: str = "",
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
    where: str = "changes",
) -> Path:
    """Make a run of the weights of an EDM network and return its folder.

    Args:
        source: the weights (.safetensors or .pt; EDM's own pickles are refused).
        root: folder of runs; made when missing.
        flags_file: JSON object of the network's constructor arguments, with the class's name as
            "cls" (`compat.edm_config`), and "precond": "edm" (default), "vp" or "ve".
        group: weights to take of a file with several networks.
        name: of the run; None takes the file's.
        changes: section -> key -> value of the run's configuration.
        where: what errors call the changes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: weights, arguments or changes are refused.
    """
    from ddsm_ext.compat.edm import load_edm
    from ddsm_ext.io.files import read_json

    changes = changes or {}
    arguments = read_json(flags_file)
    if not isinstance(arguments, dict):
        raise TypeRefusal(f"{flags_file}: holds {shown(arguments)}; need an object of arguments")
    row = check_choice(f"{flags_file}: precond", arguments.pop("precond", "edm"), _PRECONDITIONERS)
    try:
        network = load_edm(source, arguments, group=group)
    except TypeError as error:
        raise Refusal(f"{flags_file}: {error}") from None
    check_changes(changes, where, "checkpoint")
    sampler = {"kind": "heun", "spacing": "karras", "steps": 18, "clip_denoised": False}
    values = {
        "model": network.config.to_dict(),
        "diffusion": {"schedule": "edm", "parameterisation": row, **_PRECONDITIONERS[row]},
        "sampler": sampler,
        "data": {"source": "images"},
        # the others' levels are uniform in log sigma, as timesteps are here
        "train": {"noise_levels": "log_normal" if row == "edm" else "uniform"},
    }
    config = RunConfig.from_dict(merge(values, changes), where)
    tensors = {key: tensor.float().contiguous() for key, tensor in network.state_dict().items()}
    return new_run(root, name or run_name(source), config, tensors, 0, source)


def import_shards(
    source: str | Path,
    root: str | Path,
    *,
    group: str = "",
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Make a run of weights in several files and return its folder.

    Args:
        source: index (.safetensors.index.json) whose metadata hold the run's configuration.
        root: folder of runs; made when missing.
        group: prefix of the weights to take where several networks are there.
        name: of the run; None takes the index's.
        changes: section -> key -> value laid over the configuration.

    Raises:
        FileNotFoundError: the index or a file that it names is missing.
        ValueError: the index holds no configuration, the weights are not those of its network, or
            the changes are refused.
    """
    from ddsm_ext.compat.weights_file import read_state_dict
    from ddsm_ext.io.weights import load_shards
    from ddsm_ext.models.network import SlimmableNetwork

    check_changes(changes or {}, "changes", "index")
    tensors, about = load_shards(source)
    if "config" not in about:
        raise Refusal(f"{source}: its metadata hold no config; need one of a run of ddsm")
    settings, step, most = about["config"], about.get("step", 0), LIMITS["train"]["steps"]
    if not isinstance(settings, dict) or not all(isinstance(v, dict) for v in settings.values()):
        raise TypeRefusal(
            f"{source}: config in its metadata is {shown(settings)}; need an object of sections"
        )
    if not is_int(step, 0) or step > most:
        raise Refusal(
            f"{source}: step in its metadata is {shown(step)}; need a whole number of 0 ... {most}"
        )
    config = RunConfig.from_dict(merge(settings, changes or {}), str(source))
    network = SlimmableNetwork(config.model, device="meta")
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    state = read_state_dict(str(source), tensors, shapes, wanted=group)
    floats = {key: tensor.float() for key, tensor in state.items()}
    name = name or run_name(str(source).removesuffix(INDEX_ENDING) + ".safetensors")
    return new_run(root, name, config, floats, step, source)


def check_changes(changes: Mapping[str, Any], where: str, what: str) -> None:
    """Refuse changes of sections that what is imported decides; `what` it is, for the error."""
    for section in FIXED_SECTIONS:
        if section in changes:
            how = "its flag file" if what == "checkpoint" else "none"
            raise Refusal(f"{where}: {section} is what the {what} decides; need {how}")


def new_run(
    root: str | Path,
    name: str,
    config: RunConfig,
    tensors: dict[str, Any],
    step: int,
    source: str | Path,
    more: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Make a run of weights, which its network has after `step` steps; returns its folder.

    `more` writes what else the folder is to hold.
    """
    from ddsm_ext.io.checkpoint import save_checkpoint
    from ddsm_ext.run.compose import weights_identity

    about = {"source": Path(source).name, "identity": plain(weights_identity(config))}

    def fill(folder: Path) -> None:
        save_checkpoint(folder, step, {"model": tensors, "ema": tensors}, about)
        more(folder)

    folder = create_run(root, name, config.to_dict(), fill)
    count, widths = sum(t.numel() for t in tensors.values()), config.model.widths
    log.info("%s parameters, widths %s", f"{count:,}", widths)
    return folder
