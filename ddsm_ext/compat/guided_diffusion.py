"""Weights of guided-diffusion (github.com/openai/guided-diffusion, commit 22e0df8).

Its `UNetModel` is the network of `ADMConfig`; q, k and v of an attention, and scale and shift of a
block, are the rows of one weight there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ddsm_ext.compat.openai_names import entries
from ddsm_ext.compat.weights_file import network_of, read_state_dict
from ddsm_ext.models.adm import ADMConfig
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.settings import Refusal, TypeRefusal, check_keys, is_int

REQUIRED = (
    "image_size", "in_channels", "model_channels", "out_channels", "num_res_blocks",
    "attention_resolutions",
)  # fmt: skip
# The constructor's other arguments and their defaults (unet.py).
DEFAULTS: dict[str, Any] = {
    "dropout": 0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "use_checkpoint": False,
    "use_fp16": False,
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
}
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "conv_resample": (bool, "True or False"),
    "use_new_attention_order": (bool, "True or False"),
    "attention_resolutions": ((tuple, list, set, frozenset), "a sequence of integers"),
    "channel_mult": ((tuple, list), "a sequence of integers"),
}
GROUPS = 32  # of every GroupNorm (nn.py)
# Fields of `ADMConfig` that other code has and `UNetModel` does not.
BEYOND = ("attn_up", "attn_middle", "norm_middle", "pad_end", "eps", "freq_shift", "sines_first",
          "time_ch")  # fmt: skip
_SOURCE = "guided-diffusion config"


def guided_diffusion_config(config: Mapping[str, Any]) -> ADMConfig:
    """Return the `ADMConfig` that equals a `UNetModel` of guided-diffusion.

    Args:
        config: the constructor's arguments by name; missing ones take its defaults.
            `attention_resolutions` are factors of downsampling, as the constructor takes them (its
            scripts divide the image size by the sizes on their command line). `use_checkpoint`,
            `use_fp16` and `use_new_attention_order` do not change what the network is.

    Raises:
        TypeError, ValueError: an argument is missing, unknown or of no use, or asks for what
            `ADMConfig` does not express.
    """
    return adm_config(checked(_SOURCE, config, DEFAULTS))


def adm_config(values: Mapping[str, Any], **more: Any) -> ADMConfig:
    """Return the `ADMConfig` of a `UNetModel`'s checked arguments; `more`: further fields."""
    factors, multiples = values["attention_resolutions"], values["channel_mult"]
    counted = values["num_head_channels"] == -1
    return ADMConfig(
        image_size=values["image_size"],
        image_channels=values["in_channels"],
        ch=values["model_channels"],
        ch_mult=tuple(multiples),
        # A factor without a level is passed over, as there.
        attn=tuple(level for level in range(len(multiples)) if 2**level in factors),
        num_res_blocks=values["num_res_blocks"],
        dropout=values["dropout"],
        groups=GROUPS,
        head_channels=None if counted else values["num_head_channels"],
        heads=values["num_heads"] if counted else None,
        scale_shift=values["use_scale_shift_norm"],
        resample_blocks=values["resblock_updown"],
        learned_sigma=values["out_channels"] == 2 * values["in_channels"],
        **{"num_classes": values["num_classes"], **more},
    )


def checked(
    source: str, config: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the constructor's arguments, the defaults filled in, that `ADMConfig` expresses.

    Args:
        source: what errors call the arguments.
        config: the arguments.
        defaults: those that may be missing.
    """
    if not isinstance(config, Mapping):
        raise TypeRefusal(
            f"{source} is {type(config).__name__}; need a mapping of UNetModel's arguments"
        )
    check_keys(source, config, [*REQUIRED, *defaults])
    missing = [name for name in REQUIRED if name not in config]
    if missing:
        raise Refusal(f"{source} lacks {', '.join(missing)}; need UNetModel's arguments")
    values = {**defaults, **config}
    for name, (kind, need) in _TYPES.items():
        if not isinstance(values[name], kind):
            raise TypeRefusal(f"{source}: {name} is {values[name]!r}; need {need}")
    for name, holds, need in _needs(values):
        if not holds:
            raise Refusal(f"{source}: {name} is {values[name]!r}; need {need}")
    return values


def _needs(values: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """Each argument's name, whether its value will do, and what would."""
    for name in ("in_channels", "out_channels"):
        yield name, is_int(values[name], 1), "an integer >= 1"
    for name in ("num_head_channels", "num_heads_upsample"):
        yield name, values[name] == -1 or is_int(values[name], 1), "an integer >= 1, or -1"
    unheeded = values["num_heads"] == -1 and values["num_head_channels"] != -1
    yield "num_heads", unheeded or is_int(values["num_heads"], 1), "an integer >= 1"
    yield "channel_mult", all(is_int(mult, 1) for mult in values["channel_mult"]), "integers"
    # What the reference builds and `ADMConfig` does not express:
    yield "dims", values["dims"] == 2, "2: images"
    resamples = values["conv_resample"] or values["resblock_updown"] is not False
    yield "conv_resample", resamples, "True, or resblock_updown"
    c, heads = values["in_channels"], values["num_heads"]
    twice = f"in_channels or twice as many: {c} or {2 * c}"
    yield "out_channels", values["out_channels"] in (c, 2 * c), twice
    if values["num_head_channels"] == -1:
        same = values["num_heads_upsample"] in (-1, heads)
        yield "num_heads_upsample", same, f"num_heads ({heads}), or -1"


def guided_diffusion_state_dict_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every parameter name of the reference's network and its shape.

    Args:
        config: as for `guided_diffusion_config`.
    """
    found = entries(guided_diffusion_config(config))
    return {name: shape for entry in found for name, shape in entry.shapes()}


def load_guided_diffusion(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    group: str = "",
) -> SlimmableNetwork:
    """Return a network equal to a `UNetModel` of guided-diffusion at full width.

    Args:
        path_or_state_dict: a .pt or .safetensors file or its content: a state dict, or a checkpoint
            that holds one.
        config: as for `guided_diffusion_config`; `use_new_attention_order` says how the rows of
            q, k and v lie.
        group: which network of a checkpoint with several to take.

    Returns:
        The network in evaluation mode on the CPU, in the dtype of the weights.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: one sentence with the file or name, what it is and what is needed.
    """
    adm = guided_diffusion_config(config)
    state = read_state_dict(
        "guided-diffusion state dict",
        path_or_state_dict,
        guided_diffusion_state_dict_shapes(config),
        wanted=group,
    )
    new_order = config.get("use_new_attention_order", False)
    ours = [pair for entry in entries(adm, new_order=new_order) for pair in entry.ours(state)]
    return network_of(adm, dict(ours))


def to_guided_diffusion_state_dict(
    net: SlimmableNetwork, *, use_new_attention_order: bool = False
) -> dict[str, Tensor]:
    """Return the weights under the reference's names, as its `load_state_dict` takes them.

    Args:
        net: a network of an `ADMConfig`.
        use_new_attention_order: the argument that the reference's network is built with.

    Returns:
        Detached tensors; those that are one parameter in `net` share its memory.

    Raises:
        TypeError: `net` is no `SlimmableNetwork` of an `ADMConfig`.
        ValueError: the reference has no such network.
    """
    config = config_of("to_guided_diffusion_state_dict", net)
    if config.context_channels is not None:
        raise Refusal(
            "to_guided_diffusion_state_dict: the network attends to a context; need one that does "
            "not, or to_latent_diffusion_state_dict"
        )
    ours, found = net.state_dict(), entries(config, new_order=use_new_attention_order)
    return {name: tensor for entry in found for name, tensor in entry.theirs(ours)}


def config_of(what: str, net: SlimmableNetwork) -> ADMConfig:
    """Return the config of a network that a `UNetModel` can be; `what` names the caller in errors.

    Raises:
        TypeError, ValueError: it is none.
    """
    config = getattr(net, "config", None)
    if not isinstance(net, SlimmableNetwork) or not isinstance(config, ADMConfig):
        got = type(net if config is None else config).__name__
        raise TypeRefusal(f"{what}: got {got}; need a SlimmableNetwork of an ADMConfig")
    if config.groups != GROUPS:
        raise Refusal(
            f"{what}: groups is {config.groups}; need {GROUPS}, as in the reference's network"
        )
    plain = ADMConfig(
        **{
            **config.to_dict(),
            **{name: getattr(ADMConfig, name) for name in BEYOND},
        }
    )
    if plain != config:
        ours, theirs = config.to_dict(), plain.to_dict()
        name = next(key for key in ours if ours[key] != theirs[key])
        raise Refusal(f"{what}: {name} is {ours[name]!r}; need {theirs[name]!r}, as there")
    return config
