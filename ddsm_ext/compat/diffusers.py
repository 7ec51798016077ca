"""Weights of diffusers' `UNet2DModel`, whose network is that of `ADMConfig`.

q, k and v of attention are apart there, too, and linear layers where ours are 1x1 convolutions.
Nothing here imports diffusers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from ddsm_ext.compat.ddpm_as_adm import adm_weights, config_of
from ddsm_ext.compat.fused import FusedLayer
from ddsm_ext.compat.unet2d_config import (
    SLIMMABLE,
    diffusers_config,
    slimmable_config,
    to_diffusers_config,
)
from ddsm_ext.compat.weights_file import network_of, open_weights, read_state_dict
from ddsm_ext.graph.count import layers
from ddsm_ext.io.files import read_json
from ddsm_ext.io.weights import INDEX_ENDING, check_not_pickled, load_shards
from ddsm_ext.models.adm import ADMConfig
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.models.unet import UNetConfig
from ddsm_ext.settings import Refusal, TypeRefusal

_WEIGHTS = "diffusion_pytorch_model"
_WHOLE = {
    "time_embedding.linear1": "time_embedding.linear_1",
    "time_embedding.linear2": "time_embedding.linear_2",
    "label_embedding": "class_embedding",
    "head": "conv_in",
    "tail.norm": "conv_norm_out",
    "tail.conv": "conv_out",
}
_IN_BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
    "conv": "conv",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "out": "to_out.0",
}
# Names in files of before 0.15.
_BEFORE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OF_BEFORE = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(?:weight|bias)$)")
_LINEAR = tuple(f".{name}" for name in _BEFORE.values())


class _Entry(FusedLayer):
    """Layers of ours and theirs: one each, or scale and shift of a block, which are one there."""

    def shape(self, suffix: str) -> tuple[int, ...]:
        """Shape of its parameter."""
        shape = super().shape(suffix)
        return shape[:2] if self.name.endswith(_LINEAR) else shape

    def ours(self, theirs: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our parameters of theirs."""
        for suffix in self.layers[0].suffixes:
            parts = self.split(theirs[f"{self.name}.{suffix}"])
            for layer, tensor in zip(self.layers, parts, strict=True):
                yield f"{layer.name}.{suffix}", tensor.reshape(layer.shape(suffix))

    def theirs(self, ours: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their parameters of ours, which they share memory with where they are one of them."""
        for suffix in self.layers[0].suffixes:
            tensor = self.joined([ours[f"{layer.name}.{suffix}"] for layer in self.layers])
            linear = tensor.dim() == 4 and self.name.endswith(_LINEAR)
            yield f"{self.name}.{suffix}", tensor.flatten(1) if linear else tensor


def _entries(config: ADMConfig | UNetConfig) -> list[_Entry]:
    """Every layer with parameters, in our order of execution."""
    # A joining block has a shortcut there, too: its inputs always outnumber its outputs.
    places, found = _places(config), []
    for node, group in groupby(layers(config.graph), key=lambda layer: layer.node):
        ours = tuple(group)
        if node.parts == ("scale", "shift"):
            found.append(_Entry(_their_name(node.name, places), ours))
        else:
            found += [_Entry(_their_name(layer.name, places), (layer,)) for layer in ours]
    return found


def _their_name(name: str, places: Mapping[str, str]) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    path, _, inner = name.rpartition(".")
    return f"{places[path]}.{_IN_BLOCK[inner]}"


def _places(config: ADMConfig | UNetConfig) -> dict[str, str]:
    """Paths of our blocks and attentions -> theirs."""
    names = {"middle.0": "mid_block.resnets.0", "middle.0.attention": "mid_block.attentions.0",
             "middle.1": "mid_block.resnets.1"}  # fmt: skip
    for way, blocks in (("down", config.num_res_blocks), ("up", config.num_res_blocks + 1)):
        for i in range(len(config.ch_mult)):
            start, theirs = i * (blocks + 1), f"{way}_blocks.{i}"
            for j in range(blocks):
                names[f"{way}.{start + j}"] = f"{theirs}.resnets.{j}"
                names[f"{way}.{start + j}.attention"] = f"{theirs}.attentions.{j}"
            names[f"{way}.{start + blocks}"] = f"{theirs}.{way}samplers.0"
    return names


def diffusers_state_dict_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every parameter name of a `UNet2DModel` and its shape.

    Args:
        config: as for `diffusers_config`.
    """
    adm = diffusers_config(config)
    return {
        f"{entry.name}.{suffix}": entry.shape(suffix)
        for entry in _entries(adm)
        for suffix in entry.layers[0].suffixes
    }


def load_diffusers(
    source: str | os.PathLike[str] | Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
) -> SlimmableNetwork:
    """Return a network equal to a `UNet2DModel` at full width, or that of a `SlimmableUNet2D`.

    Args:
        source: the folder of a model, or of a pipeline with one, as `save_pretrained` writes them;
            a .safetensors file; or a state dict. Pickles (.bin) are not read.
        config: the content of its config.json; None takes the folder's.

    Returns:
        The network in evaluation mode on the CPU, in the dtype of the weights.

    Raises:
        FileNotFoundError: there is no such folder or file.
        TypeError, ValueError: one sentence with the file or name, what it is and what is needed.
    """
    what = "UNet2DModel state dict"
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            path = part_of(path, "unet")
            config = read_json(path / "config.json") if config is None else config
        what, source = str(path), _weights(path)
    if config is None:
        raise Refusal(f"{what}: got no config; need that of its UNet2DModel, or the model's folder")
    if not isinstance(source, Mapping):
        raise TypeRefusal(f"{what}: got {type(source).__name__}; need a path or a state dict")
    if isinstance(config, Mapping) and config.get("_class_name") == SLIMMABLE:
        return _load_slimmable(what, source, config)
    renamed = {
        _OF_BEFORE.sub(lambda found: _BEFORE[found[1]], name) if isinstance(name, str) else name: t
        for name, t in source.items()
    }
    adm = diffusers_config(config)
    state = read_state_dict(what, renamed, diffusers_state_dict_shapes(config))
    return network_of(adm, dict(pair for entry in _entries(adm) for pair in entry.ours(state)))


def _load_slimmable(
    what: str, source: Mapping[str, Any], config: Mapping[str, Any]
) -> SlimmableNetwork:
    adm = slimmable_config(config)
    shapes = {
        f"{layer.name}.{suffix}": layer.shape(suffix)
        for layer in layers(adm.graph)
        for suffix in layer.suffixes
    }
    return network_of(adm, read_state_dict(what, source, shapes))


def part_of(folder: Path, name: str) -> Path:
    """Return the folder of a part of a pipeline: one of its name, or else `folder` itself."""
    return folder / name if (folder / name).is_dir() else folder


def _weights(path: Path) -> Mapping[str, Any]:
    """Tensors of a model's folder, in one file or several, or of a file."""
    if not path.is_dir():
        return open_weights(path)
    index, file = path / f"{_WEIGHTS}{INDEX_ENDING}", path / f"{_WEIGHTS}.safetensors"
    if index.is_file():
        return load_shards(index)[0]
    check_not_pickled(file)
    return open_weights(file)


def to_diffusers_state_dict(net: SlimmableNetwork) -> dict[str, Tensor]:
    """Return the full width's weights as `UNet2DModel(**to_diffusers_config(config))` has them.

    Returns:
        Detached tensors; those that are one parameter in `net` share its memory.

    Raises:
        TypeError: `net` is no `SlimmableNetwork` of an `ADMConfig` or `UNetConfig`.
        ValueError: `UNet2DModel` has no such network.
    """
    config = config_of(net)
    to_diffusers_config(config)
    return named_as_there(config, {name: t.detach() for name, t in net.state_dict().items()})


def named_as_there(
    config: ADMConfig | UNetConfig, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights of a network, or of a width of it, as `UNet2DModel` names them."""
    ours = adm_weights(config, state)
    return dict(pair for entry in _entries(config) for pair in entry.theirs(ours))
