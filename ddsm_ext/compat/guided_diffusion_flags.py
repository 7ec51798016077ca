"""Flags of the scripts of guided-diffusion and improved-diffusion: network, process and sampler.

Source: `script_util.py` of github.com/openai/guided-diffusion, commit 22e0df8 (names, defaults).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.settings import Refusal, check_choice, did_you_mean

# Flags that say what the weights are and how images come of them, and their defaults.
_DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "sigma_small": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "predict_xstart": False,
    "rescale_timesteps": False,
    "use_ddim": False,
    "clip_denoised": True,
}
# What improved-diffusion's scripts take by default in place of these
_IMPROVED = {"rescale_timesteps": True}
CODES = ("guided-diffusion", "improved-diffusion")
# Flags of these scripts that change neither.
_OTHERS = frozenset((
    "batch_size", "classifier_path", "classifier_scale", "data_dir", "ema_rate",
    "fp16_scale_growth", "log_interval", "lr", "lr_anneal_steps", "microbatch", "model_path",
    "num_samples", "rescale_learned_sigmas", "resume_checkpoint", "save_interval",
    "schedule_sampler", "use_checkpoint", "use_fp16", "use_kl", "weight_decay",
))  # fmt: skip
_MULTIPLES = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
_CLASSES = 1000
_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


@dataclass(frozen=True)
class GuidedDiffusionFlags:
    """What the flags say.

    Args:
        unet: arguments of `UNetModel`, as `guided_diffusion_config` takes them.
        diffusion: the process.
        sampler: how the reference's script makes images.
    """

    unet: dict[str, Any]
    diffusion: DiffusionConfig
    sampler: SamplerConfig


def parse_guided_diffusion_flags(
    text: str, *, source: str = "flags", code: str = "guided-diffusion"
) -> GuidedDiffusionFlags:
    """Read the flags of a model card or a command, such as `--image_size 64 --class_cond True`.

    Args:
        text: the flags, on one line or several; words that are no flags, as of the shell around
            them, and flags that concern neither network nor process are passed over.
        source: what errors call the text.
        code: one of CODES, whose defaults count.

    Raises:
        ValueError: a flag is unknown, or its value is refused.
    """
    more = _IMPROVED if check_choice("code", code, CODES) == "improved-diffusion" else {}
    flags = {**_DEFAULTS, **more, **_read(text, source)}
    try:
        return GuidedDiffusionFlags(_unet(flags), _process(flags), _sampler(flags))
    except Refusal as error:
        raise Refusal(f"{source}: {error}") from None


def _read(text: str, source: str) -> dict[str, Any]:
    """The known flags that are given, each of the type of its default."""
    text = re.sub(r"\\\r?\n", " ", text.removeprefix("\ufeff"))
    text = re.sub(r"\b\w+=(?=[\"']\s*--)", "", text)  # MODEL_FLAGS="--...": the flags inside
    try:
        words = [w for outer in shlex.split(text, comments=True) for w in outer.split()]
    except ValueError as error:
        raise Refusal(f"{source}: {error}; need flags such as --image_size 64") from None
    found: dict[str, Any] = {}
    for at, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        if name not in _DEFAULTS and name not in _OTHERS:
            known = did_you_mean(name, (*_DEFAULTS, *_OTHERS))
            raise Refusal(f"{source}: unknown flag --{name}{known}")
        if not equals:
            value = words[at + 1] if at + 1 < len(words) else "--"
        if not equals and value.startswith("--"):
            raise Refusal(f"{source}: --{name} has no value; need one")
        if name in _DEFAULTS:
            found[name] = _value(name, value, type(_DEFAULTS[name]), source)
    return found


def _value(name: str, text: str, kind: type, source: str) -> Any:
    if kind is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise Refusal(f"{source}: --{name} is {text!r}; need True or False")
        return text.lower() in _TRUE
    try:
        return kind(text)
    except ValueError:
        need = "a whole number" if kind is int else "a number"
        raise Refusal(f"{source}: --{name} is {text!r}; need {need}") from None


def _unet(flags: Mapping[str, Any]) -> dict[str, Any]:
    size = flags["image_size"]
    return {
        "image_size": size,
        "in_channels": 3,
        "model_channels": flags["num_channels"],
        "out_channels": 6 if flags["learn_sigma"] else 3,
        "num_res_blocks": flags["num_res_blocks"],
        # its scripts take sizes of images where the network takes factors of downsampling
        "attention_resolutions": tuple(
            size // side for side in _numbers("attention_resolutions", flags) if side
        ),
        "dropout": flags["dropout"],
        "channel_mult": _multiples(flags),
        "num_classes": _CLASSES if flags["class_cond"] else None,
        "num_heads": flags["num_heads"],
        "num_head_channels": flags["num_head_channels"],
        "num_heads_upsample": flags["num_heads_upsample"],
        "use_scale_shift_norm": flags["use_scale_shift_norm"],
        "resblock_updown": flags["resblock_updown"],
        "use_new_attention_order": flags["use_new_attention_order"],
    }


def _multiples(flags: Mapping[str, Any]) -> tuple[int, ...]:
    size = flags["image_size"]
    if flags["channel_mult"]:
        return _numbers("channel_mult", flags)
    if size not in _MULTIPLES:
        sizes = ", ".join(map(str, _MULTIPLES))
        raise Refusal(f"--image_size is {size} without --channel_mult; need it, or one of {sizes}")
    return _MULTIPLES[size]


def _numbers(name: str, flags: Mapping[str, Any]) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in flags[name].split(","))
    except ValueError:
        raise Refusal(f"--{name} is {flags[name]!r}; need whole numbers such as 32,16,8") from None


def _process(flags: Mapping[str, Any]) -> DiffusionConfig:
    steps, schedule = flags["diffusion_steps"], flags["noise_schedule"]
    betas = {}
    if schedule == "linear" and steps >= 2:  # scaled so that every number of steps ends in noise
        scale = 1000 / steps
        betas = {"beta_start": scale * 1e-4, "beta_end": scale * 0.02}
    predicts = "x0" if flags["predict_xstart"] else "epsilon"
    rescaled = flags["rescale_timesteps"] and steps != 1000
    return DiffusionConfig(
        schedule=schedule, timesteps=steps, parameterisation=predicts,
        rescale_timesteps=rescaled, **betas,
    )  # fmt: skip


def _sampler(flags: Mapping[str, Any]) -> SamplerConfig:
    spacing = flags["timestep_respacing"]
    by_stride = spacing.startswith("ddim")
    count = spacing.removeprefix("ddim")
    if count and not count.isdecimal():
        raise Refusal(f"--timestep_respacing is {spacing!r}; need a number of steps such as 250")
    steps = int(count) if count else None
    ddim = flags["use_ddim"] or by_stride
    how: dict[str, Any] = {"kind": "ddim"} if ddim else {"variance": _variance(flags)}
    return SamplerConfig(
        steps=steps,
        clip_denoised=flags["clip_denoised"],
        spacing="leading" if by_stride else "linspace",
        **how,
    )


def _variance(flags: Mapping[str, Any]) -> str:
    if flags["learn_sigma"]:
        return "learned"
    return "fixed_small" if flags["sigma_small"] else "fixed_large"
