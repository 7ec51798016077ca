"""Weights of latent-diffusion (github.com/CompVis/latent-diffusion, commit a506df5).

Its `openaimodel.UNetModel` is the network of `ADMConfig`, with transformers where it attends to a
context; the classes of its `ClassEmbedder` are the one token of that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddsm_ext.compat import guided_diffusion
from ddsm_ext.compat.openai_names import Entry, entries
from ddsm_ext.compat.weights_file import network_of, open_weights, read_state_dict
from ddsm_ext.models.adm import ADMConfig
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.settings import Refusal, TypeRefusal, is_int

# The constructor's other arguments and their defaults (openaimodel.py).
DEFAULTS: dict[str, Any] = {
    **guided_diffusion.DEFAULTS,
    "num_heads": -1,
    "use_spatial_transformer": False,
    "transformer_depth": 1,
    "context_dim": None,
    "n_embed": None,
    "legacy": True,
}
_SOURCE = "latent-diffusion config"
# Of a whole checkpoint: the network, its average, and the classes' table.
_NETWORK, _AVERAGE = "model.diffusion_model", "model_ema"
_CLASSES = "cond_stage_model.embedding"
# Rows of the published ImageNet models' table: the last stands for no class.
_IMAGENET_ROWS = 1001


def latent_diffusion_config(
    config: Mapping[str, Any], *, num_classes: int | None = None, null_class: bool = False
) -> ADMConfig:
    """Return the `ADMConfig` that equals an `openaimodel.UNetModel` of latent-diffusion.

    Args:
        config: the constructor's arguments by name; missing ones take its defaults.
            `use_checkpoint`, `use_fp16`, `legacy` and `use_new_attention_order` do not change what
            the network is.
        num_classes: classes of the `ClassEmbedder` that its context comes from; None: the network
            takes a context as it is.
        null_class: one row more stands for no class.

    Raises:
        TypeError, ValueError: an argument is missing, unknown or of no use, or asks for what
            `ADMConfig` does not express.
    """
    values = guided_diffusion.checked(_SOURCE, config, DEFAULTS)
    transforms, context = values["use_spatial_transformer"], values["context_dim"]
    if not isinstance(transforms, bool) or transforms != (context is not None):
        raise Refusal(
            f"{_SOURCE}: use_spatial_transformer is {transforms!r}, context_dim {context!r}; need "
            "True and a number, or False and None"
        )
    if values["n_embed"] is not None:
        raise Refusal(f"{_SOURCE}: n_embed is {values['n_embed']!r}; need None")
    if transforms and values["num_classes"] is not None:
        got = values["num_classes"]
        raise Refusal(f"{_SOURCE}: num_classes is {got!r} beside a context; need None")
    first = next(iter(values["channel_mult"]), 1)
    if first != 1:
        raise Refusal(f"{_SOURCE}: channel_mult begins with {first}; need 1")
    more: dict[str, Any] = {}
    if transforms:
        more = {"context_channels": context, "transformer_depth": values["transformer_depth"]}
        more |= {"num_classes": num_classes, "null_class": null_class}
    return guided_diffusion.adm_config(values, **more)


def latent_diffusion_state_dict_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every parameter name of the reference's network and its shape.

    Args:
        config: as for `latent_diffusion_config`.
    """
    found = _entries(latent_diffusion_config(config))
    return {name: shape for entry in found for name, shape in entry.shapes()}


def load_latent_diffusion(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    group: str = "",
) -> SlimmableNetwork:
    """Return a network equal to an `openaimodel.UNetModel` at full width.

    Where the file holds a `ClassEmbedder` beside a network with a context, its classes are the
    network's labels.

    Args:
        path_or_state_dict: a .ckpt, .pt or .safetensors file or its content: the network's state
            dict, or a checkpoint of the whole model. Of its averaged weights and the others, the
            former are taken.
        config: as for `latent_diffusion_config`.
        num_classes: classes of the embedder, where one row more stands for none; None: of 1001
            rows, as ImageNet's, the last does, of others none.
        group: "model_ema" or "model.diffusion_model" of a checkpoint with both.

    Returns:
        The network in evaluation mode on the CPU, in the dtype of the weights.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: one sentence with the file or name, what it is and what is needed.
    """
    shapes = latent_diffusion_state_dict_shapes(config)
    source: str | Mapping[str, Any] = "latent-diffusion state dict"
    content: Any = path_or_state_dict
    if isinstance(content, (str, os.PathLike)):
        source, content = os.fspath(content), open_weights(Path(content))
    if not isinstance(content, Mapping):
        got = type(content).__name__
        raise TypeRefusal(f"{source}: got {got}; need a path or a state dict")
    model = content["state_dict"] if isinstance(content.get("state_dict"), Mapping) else content
    networks = {_AVERAGE: _averaged(model, shapes), _NETWORK: _below(_NETWORK, model)}
    whole = {name: state for name, state in networks.items() if state}
    state = read_state_dict(
        str(source), whole or model, shapes, groups=(_AVERAGE, _NETWORK), wanted=group
    )
    table = model.get(f"{_CLASSES}.weight") if config.get("context_dim") else None
    classes = _classes(str(source), table, config, num_classes)
    adm = latent_diffusion_config(config, **classes)
    if table is not None:
        state[f"{_CLASSES}.weight"] = table
    return network_of(adm, dict(pair for entry in _entries(adm) for pair in entry.ours(state)))


def to_latent_diffusion_state_dict(net: SlimmableNetwork) -> dict[str, Tensor]:
    """Return the weights as the reference's whole model names them.

    Returns:
        Detached tensors, the network's below "model.diffusion_model" and the classes' table as
        "cond_stage_model.embedding.weight"; those that are one parameter in `net` share its memory.

    Raises:
        TypeError: `net` is no `SlimmableNetwork` of an `ADMConfig`.
        ValueError: the reference has no such network.
    """
    config = guided_diffusion.config_of("to_latent_diffusion_state_dict", net)
    ours = net.state_dict()
    pairs = (pair for entry in _entries(config) for pair in entry.theirs(ours))
    return {
        name if name.startswith(_CLASSES) else f"{_NETWORK}.{name}": tensor
        for name, tensor in pairs
    }


def _entries(config: ADMConfig) -> list[Entry]:
    return entries(config, label="label_emb" if config.context_channels is None else _CLASSES)


def _below(prefix: str, content: Mapping[str, Any]) -> dict[str, Any]:
    start = f"{prefix}."
    return {
        name.removeprefix(start): value
        for name, value in content.items()
        if isinstance(name, str) and name.startswith(start)
    }


def _averaged(content: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The average's weights; its buffers' names have no dots (ema.py)."""
    names = {f"{_AVERAGE}.diffusion_model{name.replace('.', '')}": name for name in shapes}
    return {name: content[theirs] for theirs, name in names.items() if theirs in content}


def _classes(
    source: str, table: Any, config: Mapping[str, Any], num_classes: int | None
) -> dict[str, Any]:
    """Settings of the classes whose table a checkpoint holds."""
    if table is None:
        if num_classes is not None:
            raise Refusal(f"{source}: num_classes is {num_classes}, it has no {_CLASSES}; need one")
        return {}
    shape = tuple(getattr(table, "shape", ()))
    if not isinstance(table, Tensor) or len(shape) != 2 or shape[1] != config["context_dim"]:
        need = f"a tensor [classes, {config['context_dim']}]"
        raise Refusal(f"{source}: {_CLASSES}.weight is {list(shape)}; need {need}")
    rows = shape[0]
    if num_classes is None:
        num_classes = rows - 1 if rows == _IMAGENET_ROWS else rows
    if not is_int(num_classes, 1) or num_classes not in (rows, rows - 1):
        raise Refusal(
            f"{source}: num_classes is {num_classes!r}, {_CLASSES} has {rows} rows; need {rows}, "
            "or one less"
        )
    return {"num_classes": num_classes, "null_class": num_classes < rows}
