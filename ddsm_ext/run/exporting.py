"""Writes one width of a run as a plain dense network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddsm_ext.io.files import write_atomic, write_json
from ddsm_ext.run.config import RunConfig
from ddsm_ext.settings import Refusal, plain


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
