"""Writes a run's network: one width as a plain dense network, or as other code names it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddsm_ext.io.files import write_atomic, write_json
from ddsm_ext.io.lock import output_lock
from ddsm_ext.run.compose import load_network
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.onnx_file import export_onnx
from ddsm_ext.run.pipelines import export_pipeline
from ddsm_ext.run.strategies import read_strategy
from ddsm_ext.sampling.strategy import Strategy, as_strategy
from ddsm_ext.settings import Refusal, check_choice, plain

# What a network can be written as -> the ending of the file, "" of a folder, and its options
CODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "state-dict": ("", ("width",)),
    "guided-diffusion": (".safetensors", ()),
    "diffusers": ("", ("width", "strategy", "sampler", "autoencoder")),
    "onnx": (".onnx", ("width",)),
}


def export_to(
    run: Path,
    config: RunConfig,
    code: str,
    out: str | Path | None = None,
    *,
    weights: str = "ema",
    width: float | None = None,
    strategy: Strategy | float | str | Path | None = None,
    autoencoder: str | Path | None = None,
) -> Path:
    """Write a run's network as other code has it; returns the file or folder.

    Args:
        run: the run folder.
        config: its configuration.
        code: one of CODES: "state-dict" (a folder, `export_width`), "guided-diffusion" (a file of
            its names, with q, k and v in the legacy order), "diffusers" (a pipeline's folder,
            `pipelines.export_pipeline`) or "onnx" (`onnx_file.export_onnx`).
        out: what to write; None takes a place in the run.
        weights: one of `weights_of(config)`.
        width: one width alone; None: the full width, or all of them in a pipeline.
        strategy: of a pipeline: a strategy, its file, or a width; None takes the run's.
        autoencoder: of a pipeline: folder of the one that decodes what the network makes; None
            takes the run's, if it is of latents.

    Raises:
        ImportError: a package of an extra is missing.
        FileNotFoundError: the run has no whole checkpoint yet, or what is named is not there.
        ValueError: that code has no such network, or an option is of no use for it.
    """
    ending, options = CODES[check_choice("export: code", code, CODES)]
    given = {"width": width, "strategy": strategy, "autoencoder": autoencoder}
    for name, value in given.items():
        if value is not None and name not in options:
            raise Refusal(f"export: {name} is {value!r}; need none for {code}")
    if width is not None and strategy is not None:
        raise Refusal(f"export: got width {width!r} and strategy {strategy!r}; need one of them")
    full = 1.0 if width is None else config.model.check_width(width)
    place = run / "export" / f"{_named(code, width)}{ending}" if out is None else Path(out)
    load = partial(load_network, run, config, torch.device("cpu"), weights)
    with output_lock(run, out):
        if code == "diffusers":
            chosen = as_strategy(full) if width else read_strategy(strategy, run, config)[1]
            return export_pipeline(
                load, config, place, strategy=chosen, width=width, autoencoder=autoencoder
            )
        if code == "onnx":
            return export_onnx(load, config, full, place)
        if code == "state-dict":
            return export_width(load(), config, full, place)
        return _export_guided_diffusion(load(), place)


def _named(code: str, width: float | None) -> str:
    if code == "state-dict":
        return f"width-{1.0 if width is None else width:g}"
    return code if width is None else f"{code}-{width:g}"


def _export_guided_diffusion(network: Any, file: Path) -> Path:
    from safetensors.torch import save

    from ddsm_ext.compat.guided_diffusion import to_guided_diffusion_state_dict

    state = to_guided_diffusion_state_dict(network)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    return write_atomic(file, save(tensors, metadata={"format": "pt"}))


def export_width(network: Any, config: RunConfig, width: float, folder: Path) -> Path:
    """Write config.json and model.safetensors of a network's width into a folder; returns it.

    Args:
        network: the slimmable network.
        config: of its run.
        width: the width.
        folder: made when missing.

    Raises:
        ValueError: the network has no such width, or the folder is a run's.
    """
    from safetensors.torch import save

    if (folder / "checkpoints").exists() or (folder / "env.json").exists():
        raise Refusal(f"export: {folder} is a run folder; need another one")

    dense = network.export_subnet(width).cpu()
    tensors = {name: t.detach().contiguous() for name, t in dense.state_dict().items()}
    about = plain({"width": width, "model": config.model, "diffusion": config.diffusion})
    write_json(folder / "config.json", about)
    write_atomic(folder / "model.safetensors", save(tensors, metadata={"width": f"{width:g}"}))
    return folder
