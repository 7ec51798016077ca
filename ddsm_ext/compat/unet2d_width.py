"""One width of a network as a `UNet2DModel` of diffusers, which needs nothing of this package.

Its sinusoids have as many channels as its first level, and ours at every width those of the full
one. What no sinusoids of its own express is kept as a table: its "learned" embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddsm_ext.compat.ddpm_as_adm import adm_form, config_of
from ddsm_ext.compat.diffusers import named_as_there
from ddsm_ext.compat.unet2d_config import to_diffusers_config
from ddsm_ext.models.adm import ADMConfig
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.ops.embedding import embed_time
from ddsm_ext.settings import Refusal

_TIME = "time_embedding"
# SiLU of it is itself, and of its opposite 1e-26, in every dtype: a switch. A power of two.
_ON = 64.0
# Of two digits and more that tell timesteps apart, so that float32 has all sums exactly.
_BASES = range(2, 149)


def to_unet2d(
    net: SlimmableNetwork,
    width: float = 1.0,
    *,
    timesteps: int | None = None,
    time_scale: float = 1.0,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and state dict of the `UNet2DModel` that equals a network at a width.

    At full width its time embedding is the network's. At a narrower one, or where the network is
    given scaled timesteps, it is a table of the integer ones: row t holds digits of t and their
    squares, so that the first layer's output s is 64 - 128 |digits(s) - digits(t)|², positive for
    s = t alone, and column t of the second one is the embedding of t.

    Args:
        net: a network of an `ADMConfig` or a `UNetConfig`.
        width: 0 < width <= 1, usable by its config.
        timesteps: it is asked about the integers from 0 to timesteps - 1; None: any numbers.
        time_scale: the network is given a timestep times it.

    Returns:
        config as JSON values, and tensors in the dtype of the network on its device.

    Raises:
        TypeError: `net` is of another family.
        ValueError: `UNet2DModel` has no such network; or a table is wanted and the timesteps are
            no integers, or more than the first level's channels tell apart.
    """
    config = config_of(net)
    adm, theirs = adm_form(config), to_diffusers_config(config, width)
    own = {name: t.detach() for name, t in net.export_subnet(width).state_dict().items()}
    state = named_as_there(config, own)
    c = theirs["block_out_channels"][0]
    if c == (adm.time_ch or adm.ch) and time_scale == 1.0:
        return theirs, _contiguous(state)
    if timesteps is None:
        raise Refusal(
            f"UNet2DModel: has {c} sinusoids at width {width:g}, the network "
            f"{adm.time_ch or adm.ch}, and a table of them needs integer timesteps; need width 1"
        )
    t = torch.arange(timesteps, device=next(net.parameters()).device)
    embedded = _embedded(adm, state, t if time_scale == 1.0 else t * time_scale)
    state |= _table(_digits(t, c, width).to(embedded.dtype), embedded, c)
    size = len(state[f"{_TIME}.linear_2.bias"])
    for name, tensor in state.items():  # whatever takes or adds to the embedding has more columns
        if name.endswith("time_emb_proj.weight") or name == "class_embedding.weight":
            state[name] = F.pad(tensor, (0, size - tensor.shape[1]))
    learned = {"time_embedding_type": "learned", "time_embedding_dim": size}
    return {**theirs, **learned, "num_train_timesteps": timesteps}, _contiguous(state)


def _embedded(adm: ADMConfig, state: dict[str, Tensor], t: Tensor) -> Tensor:
    """The time embedding of timesteps, [T, e], before the SiLU that every block begins with."""
    first, second = (
        [state[f"{_TIME}.linear_{i}.{suffix}"] for suffix in ("weight", "bias")] for i in (1, 2)
    )
    e = embed_time(
        t, first[0].shape[1], None, first[0].dtype,
        halves=True, swapped=adm.sines_first, freq_shift=adm.freq_shift,
    )  # [T, ch]  # fmt: skip
    return F.linear(F.silu(F.linear(e, *first)), *second)


def _digits(t: Tensor, c: int, width: float) -> Tensor:
    """Digits of timesteps 0 ... T - 1, [T, p]: they and their squares are no more than c."""
    base = next((base for base in _BASES if base ** (c // 2) >= len(t)), None)
    if base is None:
        raise Refusal(
            f"UNet2DModel: its first level has {c} channels at width {width:g}, too few to tell "
            f"{len(t)} timesteps apart; need another width"
        )
    places = next(p for p in range(1, c) if base**p >= len(t))
    return torch.stack([t // base**p % base for p in range(places)], dim=1)


def _table(digits: Tensor, embedded: Tensor, c: int) -> dict[str, Tensor]:
    """Weights of which row t of the table gives the embedding of t.

    Args:
        digits: [T, p].
        embedded: [T, e].
        c: channels of the table.
    """
    (count, places), e = digits.shape, embedded.shape[1]
    size = max(count, e)
    squares = digits.square()
    first = 2 * _ON * torch.cat([2 * digits, -torch.ones_like(digits)], dim=1)  # [T, 2 p]
    bias = _ON - 2 * _ON * squares.sum(1)  # [T]
    columns, rows = c - 2 * places, size - count
    return {
        "time_proj.weight": F.pad(torch.cat([digits, squares], dim=1), (0, columns)),  # [T, c]
        f"{_TIME}.linear_1.weight": F.pad(first, (0, columns, 0, rows)),
        f"{_TIME}.linear_1.bias": F.pad(bias, (0, rows)),
        f"{_TIME}.linear_2.weight": F.pad(embedded.T / _ON, (0, rows, 0, size - e)),
        f"{_TIME}.linear_2.bias": embedded.new_zeros(size),
    }


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in state.items()}
