"""Runs made of checkpoints of latent-diffusion, with its settings in YAML or JSON."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddsm_ext.io.files import one_line, parse_json, read_bytes
from ddsm_ext.run.config import RunConfig, merge
from ddsm_ext.run.folder import run_name
from ddsm_ext.run.importing import check_changes, new_run
from ddsm_ext.run.latents import with_latents
from ddsm_ext.settings import MissingLibrary, Refusal, TypeRefusal, check_choice, shown

log = logging.getLogger(__name__)
# Its names of the schedules (util.py): "linear" is even in the roots of the betas.
_SCHEDULES = {"linear": "scaled_linear", "cosine": "cosine", "sqrt_linear": "linear"}
_PREDICTIONS = {"eps": "epsilon", "x0": "x0", "v": "v"}
# Betas of the models that were published, and what its code has where a configuration has none.
_PUBLISHED = {"linear_start": 0.0015, "linear_end": 0.0195}
_DEFAULTS = {"linear_start": 1e-4, "linear_end": 2e-2, "beta_schedule": "linear",
             "parameterization": "eps", "timesteps": 1000}  # fmt: skip
# Its DDIM visits T / steps apart from t = 1 on and ends at t = 0.
_SAMPLER = {"kind": "ddim", "steps": 50, "spacing": "leading", "steps_offset": 1,
            "final": "sigma_min", "clip_denoised": False}  # fmt: skip


def import_latent_diffusion(
    source: str | Path,
    root: str | Path,
    *,
    flags_file: str | Path,
    group: str = "",
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
    where: str = "changes",
) -> Path:
    """Make a run of a checkpoint of latent-diffusion and return its folder.

    Its images are latents, and its full width is the network of the checkpoint; narrower ones want
    a training.

    Args:
        source: the checkpoint (.ckpt, .pt or .safetensors).
        root: folder of runs; made when missing.
        flags_file: the model's own configuration (.yaml, which takes PyYAML), or the same as JSON;
            or JSON of the arguments of its U-Net (`unet_config.params`), whose process then is that
            of the published models.
        group: "model_ema" or "model.diffusion_model" of a checkpoint with both.
        name: of the run; None takes the file's.
        changes: section -> key -> value of the run's configuration.
        where: what errors call the changes.

    Raises:
        ImportError: the configuration is YAML and PyYAML is not installed.
        FileNotFoundError: there is no such file.
        ValueError: checkpoint, configuration or changes are refused.
    """
    from ddsm_ext.compat.latent_diffusion import load_latent_diffusion

    changes, file = changes or {}, str(flags_file)
    unet, model = _read(flags_file)
    values: dict[str, Any] = {"diffusion": _process(model, file), "data": {"source": "images"}}
    network = load_latent_diffusion(source, unet, group=group)
    check_changes(changes, where, "checkpoint")
    values |= {"model": network.config.to_dict(), "sampler": _SAMPLER}
    config = RunConfig.from_dict(with_latents(merge(values, changes)), where)
    tensors = {key: tensor.float().contiguous() for key, tensor in network.state_dict().items()}
    return new_run(root, name or run_name(source), config, tensors, 0, source)


def _read(file: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the U-Net and of the model around it."""
    data = read_bytes(file, "configuration of latent-diffusion")
    yaml = Path(file).suffix.lower() in (".yaml", ".yml")
    content = _parse_yaml(data, str(file)) if yaml else parse_json(data, str(file))
    need = "need a configuration of latent-diffusion, or its unet_config.params"
    for path in ("model", "params"):
        if isinstance(content, Mapping) and path in content:
            content = content[path]
    if not isinstance(content, dict):
        raise TypeRefusal(f"{file}: holds {shown(content)}; {need}")
    if "unet_config" not in content:
        return content, {**_DEFAULTS, **_PUBLISHED}
    unet = content["unet_config"]
    unet = unet.get("params") if isinstance(unet, Mapping) else None
    if not isinstance(unet, dict):
        raise TypeRefusal(f"{file}: unet_config has params {shown(unet)}; {need}")
    return unet, {**_DEFAULTS, **content}


def _process(model: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The diffusion process of a model's arguments."""
    schedule = check_choice(f"{file}: beta_schedule", model["beta_schedule"], _SCHEDULES)
    row = check_choice(f"{file}: parameterization", model["parameterization"], _PREDICTIONS)
    return {
        "schedule": _SCHEDULES[schedule],
        "timesteps": model["timesteps"],
        "beta_start": model["linear_start"],
        "beta_end": model["linear_end"],
        "parameterisation": _PREDICTIONS[row],
    }


def _parse_yaml(data: bytes, file: str) -> Any:
    if importlib.util.find_spec("yaml") is None:
        raise MissingLibrary(
            f"{file}: PyYAML is not installed; need pip install pyyaml, or the same as JSON"
        )
    yaml = importlib.import_module("yaml")
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise Refusal(f"{file}: {one_line(error)}; need YAML") from None
