"""Writes a run's network: one width as a plain dense network, or as other code names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddsm_ext.io.files import write_atomic, write_json
from ddsm_ext.run.config import RunConfig
from ddsm_ext.settings import Refusal, check_choice, plain

CODES = ("guided-diffusion",)  # whose names weights can have


def export_to(network: Any, code: str, file: Path) -> Path:
    """Write the full width's weights as the code of others loads them; returns the file.

    Args:
        network: the slimmable network.
        code: one of CODES.
        file: .safetensors to write; q, k and v lie as in guided-diffusion's legacy order.

    Raises:
        ValueError: that code has no such network.
    """
    from safetensors.torch import save

    from ddsm_ext.compat.guided_diffusion import to_guided_diffusion_state_dict

    check_choice("export: code", code, CODES)
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
