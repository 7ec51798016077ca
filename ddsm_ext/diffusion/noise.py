"""Counter-based random numbers: what an image gets depends on its own seed, never on its batch.

Philox4x32-10 in integer tensor operations, so the bits are equal on every device and batch size.
Counter words: (block of four elements, step, stream, 0); key: the 64-bit seed, low word first.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ddsm_ext.settings import Refusal, TypeRefusal

# Salmon et al. 2011, table 2 and section 3: multipliers and Weyl increments of Philox4x32.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10: four random 32-bit words per counter.

    Args:
        counter: [4, ...] int64, each word in [0, 2**32).
        key: [2, ...] int64, each word in [0, 2**32), broadcastable against `counter[0]`.

    Returns:
        [4, ...] int64, each word in [0, 2**32).

    Source: Salmon et al. 2011, section 3.3; equal to Random123's `philox4x32_R(10, ...)`.
    """
    c0, c1, c2, c3 = counter.unbind(0)
    k0, k1 = key.unbind(0)
    for _ in range(_ROUNDS):
        # The 64 bits of a product wrap into the sign bit; shift and mask give its two words back.
        # Low words keep their high bits until the next mask: one pass fewer over each.
        product0, product2 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product2 >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (product0 >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = product2, product0
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _MASK, (k1 + _KEY_INCREMENTS[1]) & _MASK
    return torch.stack([c0, c1 & _MASK, c2, c3 & _MASK])  # [4, ...]


def as_seeds(seeds: Tensor | Iterable[int], device: torch.device | str | None = None) -> Tensor:
    """Return `seeds` as an int64 tensor [N].

    Args:
        seeds: [N] integer tensor, or integers; any signed 64-bit value.
        device: where the result lives; None keeps a tensor's device, else the CPU.

    Raises:
        TypeError: the seeds are not integers.
        ValueError: the tensor is not one-dimensional, or a seed is beyond 64 bits.
    """
    if not isinstance(seeds, Tensor):
        if not isinstance(seeds, Iterable):
            raise TypeRefusal(f"seeds: got {seeds!r}; need integers, one per image")
        values = list(seeds)
        if any(isinstance(v, bool) or not hasattr(v, "__index__") for v in values):
            raise TypeRefusal(f"seeds: got {values[:4]!r}; need integers")
        if any(not -(2**63) <= int(v) < 2**63 for v in values):
            raise Refusal("seeds: one is beyond 64 bits; need -2^63 <= seed < 2^63")
        seeds = torch.tensor([int(v) for v in values], dtype=torch.int64, device="cpu")
    if seeds.dtype == torch.bool or seeds.is_floating_point() or seeds.is_complex():
        raise TypeRefusal(f"seeds: got dtype {seeds.dtype}; need an integer tensor")
    if seeds.ndim != 1:
        raise Refusal(f"seeds: got shape {tuple(seeds.shape)}; need [N], one per image")
    return seeds.to(device=device or seeds.device, dtype=torch.int64)


def normal(
    seeds: Tensor | Iterable[int],
    step: int | Tensor,
    shape: Sequence[int],
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal numbers per seed, by the Box-Muller transform of Philox words.

    Computed in float64 and rounded once: vectorised and scalar versions of log and cos differ in
    their last bit, which would otherwise show as a dependence on the batch size. |z| <= 6.77.

    Args:
        seeds: [N] seeds, one per image.
        step: step index, part of the counter; a number, or one per seed [N].
        shape: shape of one image, e.g. (C, H, W).
        stream: separates uses of one (seed, step).
        dtype: floating dtype of the result.
        device: where to compute; None takes the seeds' device.

    Returns:
        [N, *shape].

    Source: Box & Muller 1958.
    """
    seeds = as_seeds(seeds, device)
    n, count = len(seeds), math.prod(shape)
    blocks = (count + 3) // 4
    if isinstance(step, Tensor):
        if step.shape != (n,) or step.is_floating_point():
            raise Refusal(f"normal: step is {step.dtype} {tuple(step.shape)}; need integers [{n}]")
        step = (step.to(device=seeds.device, dtype=torch.int64) & _MASK)[:, None]  # [N, 1]
    for name, value in (("step", step), ("stream", stream), ("count", count)):
        if not isinstance(value, Tensor) and not 0 <= value <= _MASK:
            raise Refusal(f"normal: {name} is {value}; need 0 <= {name} < 2**32")
    counter = torch.empty(4, n, blocks, dtype=torch.int64, device=seeds.device)
    counter[0] = torch.arange(blocks, device=seeds.device)
    counter[1], counter[2], counter[3] = step, stream, 0
    key = torch.stack([seeds & _MASK, (seeds >> 32) & _MASK])[:, :, None]  # [2, N, 1]
    words = philox4x32(counter, key)  # [4, N, blocks]
    unit = words.double().add_(0.5).mul_(2.0**-32)  # [4, N, blocks] in (0, 1)
    radius = unit[0::2].log_().mul_(-2.0).sqrt_()  # words 0 and 2: [2, N, blocks]
    angle = unit[1::2].mul_(2.0 * math.pi)  # words 1 and 3
    z = torch.empty(n, blocks, 2, 2, dtype=dtype, device=seeds.device)
    z[..., 0] = torch.cos(angle).mul_(radius).permute(1, 2, 0)
    z[..., 1] = angle.sin_().mul_(radius).permute(1, 2, 0)
    return z.flatten(1)[:, :count].reshape(n, *shape)  # [N, *shape]


def generator(seed: int, *keys: int) -> torch.Generator:
    """Return a CPU generator seeded by (seed, *keys), e.g. (seed, rank, step).

    Different keys, which name the use, give unrelated streams: the seed is a BLAKE2b hash of all.
    """
    text = ",".join(str(int(value)) for value in (seed, *keys))
    digest = hashlib.blake2b(text.encode("ascii"), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
