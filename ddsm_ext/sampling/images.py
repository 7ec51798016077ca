"""Step-aware sampling: one image per seed, in batches, by any sampler function."""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ddsm_ext._fixed_weights import fixed_weights
from ddsm_ext.diffusion.level import Level
from ddsm_ext.diffusion.noise import as_seeds, normal
from ddsm_ext.diffusion.prediction import Prediction
from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.denoiser import Callback, Classifier, Denoiser, Network
from ddsm_ext.sampling.levels import check_levels, configured, dry_run, noise_levels
from ddsm_ext.sampling.method import Method
from ddsm_ext.sampling.samplers import SAMPLERS
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal, TypeRefusal, is_int

# Counter streams: x_T is (stream 0, step 0), a sampler's i-th draw of noise (stream 1, i).
INITIAL_STREAM = 0
STEP_STREAM = 1
# 2**18 elements take 2 MB in each of Philox's int64 tensors, which stays in a core's cache; on a
# GPU larger chunks mean fewer launches.
_NOISE_CHUNK_ELEMENTS = 2**18
_NOISE_CHUNK_ELEMENTS_CUDA = 2**22

Progress = Callable[[int, int], None]


def sample(
    net: Network,
    schedule: NoiseSchedule,
    strategy: Strategy | float,
    seeds: Tensor | Iterable[int],
    shape: Sequence[int],
    sampler: SamplerConfig | None = None,
    *,
    parameterisation: str | Prediction = "epsilon",
    labels: Tensor | Sequence[int] | None = None,
    null_label: int | None = None,
    classifier: Classifier | None = None,
    method: Method | None = None,
    levels: Sequence[Level] | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    callback: Callback | None = None,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Draw one image per seed; an image depends on its seed, not on its batch.

    Args:
        net: called as `net(x, t, width)`, with labels as `net(x, t, width, y)`: x [n, C, H, W]
            channels_last, t [n] int64 (float32 at levels between timesteps), width float, y [n]
            int64; returning [n, C, H, W], or [n, 2C, H, W] with a learned variance. A module runs
            in eval mode, in which a `SlimmableNetwork` runs its compiled steps (its `run_modules`
            never does).
        schedule: the noise schedule that the network was trained with.
        strategy: width per noise level, or one width in (0, 1] for all.
        seeds: [N] integers, one per image.
        shape: (C, H, W) of an image.
        sampler: kind and step count; None takes `SamplerConfig()`: DDPM with all timesteps.
        parameterisation: what the network predicts and is given: a name in
            `diffusion.PREDICTIONS`, or a row such as `diffusion.prediction_of(config)`.
        labels: [N] integers, the class of each image; None for a network without classes.
        null_label: the network's label that stands for no class, which `sampler.guidance` needs
            unless it is by width.
        classifier: called as (x, t, labels), x [n, C, H, W] and t [n] as the network has it;
            returns log p(label | x, t) [n] times the scale of guidance by its gradient (Dhariwal &
            Nichol 2021): the mean of "ddpm" is moved by it, x0 of other samplers.
        method: a sampler function of your own, `(denoise, x, levels, noise) -> x`, in place of the
            one that `sampler.kind` names (see docs/adding-a-sampler.md). It may turn gradients on
            (`torch.enable_grad`).
        levels: noise levels of your own, noisy to clean with `CLEAN` at the end, in place of the
            sampler's steps and spacing.
        batch_size: images that run together, at least 1.
        device: where the network lives.
        dtype: floating dtype of the network's input, whatever `sampler.dtype` says, by which a run
            makes its network; the image itself stays in float32 (float64 for dtype float64).
        progress: called after every network evaluation with (evaluations done, evaluations in
            all), over all batches.
        callback: called with (`Evaluation`, x, x0) of the running batch before x0 is used; a
            tensor that it returns replaces x0 (guidance), None leaves it. It may turn gradients on.
            Weights and modules are taken as they were at the begin: a callback that edits them says
            `ddsm_ext.weights_changed(net)`.
        finish: called with each batch of images [n, C, H, W] when it is done; what it returns, [n,
            ...], is kept in its place, such as decoded latents, or features. None keeps the images.

    Returns:
        [N, C, H, W] float32 on `device`, or what `finish` made of them. Nothing is clipped but x0,
        by `sampler.clip_denoised`; `to_uint8` clips pixels.

    Raises:
        ValueError: an argument does not fit, or the network's output has another shape or is not
            finite (the error names evaluation, timestep and width).

    Source: Ho et al. 2020, algorithm 2; Song et al. 2021, eq. 12.
    """
    sampler = sampler or SamplerConfig()
    device = torch.device(device)
    shape = _check_arguments(shape, batch_size, dtype)
    seeds = as_seeds(seeds)
    labels = _check_labels(labels, len(seeds))
    image_dtype = torch.promote_types(dtype, torch.float32)
    # Tensors of inference mode can never take part in autograd, as a caller's function may want.
    foreign = method is not None or callback is not None or classifier is not None
    guidance = sampler.guidance_by(null_label)
    moves_mean = method is None and SAMPLERS[sampler.kind].moves_mean
    mode = torch.no_grad() if foreign else torch.inference_mode()
    method = method or configured(sampler, schedule)
    levels = noise_levels(schedule, sampler) if levels is None else check_levels(levels)
    batches = range(0, len(seeds), batch_size)
    told = None
    if progress is not None:
        total = len(batches) * len(dry_run(method, levels, strategy, guidance))
        told = _telling(progress, total)
    done = _Done(len(seeds), shape, device, finish)
    with mode, _eval_mode(net), fixed_weights():
        for start in batches:
            rows = slice(start, start + batch_size)
            denoiser = Denoiser(
                net,
                strategy,
                parameterisation,
                labels=None if labels is None else labels[rows].to(device),
                clip=sampler.clip_denoised,
                dtype=dtype,
                callback=callback,
                progress=told,
                guidance=guidance,
                classifier=classifier,
                moves_mean=moves_mean,
            )
            own_seeds = seeds[rows].to(device)
            x = _normal(own_seeds, 0, shape, INITIAL_STREAM, image_dtype)
            if not levels[0].preserves_variance:
                x.mul_(levels[0].sigma)
            # Samplers draw at every step but the last, if at all.
            noise = _noise(own_seeds, shape, image_dtype, len(levels) - 2)
            x = method(denoiser, x, levels, noise.__next__)
            denoiser.check()
            done.take(rows, _check_result(x, (len(own_seeds), *shape)))
    return done.kept


def _check_arguments(
    shape: Sequence[int], batch_size: int, dtype: torch.dtype
) -> tuple[int, int, int]:
    try:
        dims = tuple(operator.index(size) for size in shape)
    except TypeError:
        dims = ()
    if len(dims) != 3 or min(dims) < 1:
        raise Refusal(f"sample: shape is {shape!r}; need (C, H, W), ints of at least 1")
    if not is_int(batch_size, 1):
        raise Refusal(f"sample: batch_size is {batch_size!r}; need an int >= 1")
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise Refusal(f"sample: dtype is {dtype}; need a floating dtype")
    return dims


def _check_labels(labels: Tensor | Sequence[int] | None, images: int) -> Tensor | None:
    """Labels as int64 [N]."""
    if labels is None:
        return None
    try:
        tensor = labels if isinstance(labels, Tensor) else torch.as_tensor(labels, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeRefusal(f"sample: labels is {labels!r}; need [{images}] integers") from None
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if tensor.shape != (images,) or not (whole or images == 0):
        raise Refusal(
            f"sample: labels is {tensor.dtype} of shape {tuple(tensor.shape)}; need [{images}] "
            "integers, one per seed"
        )
    return tensor.to(torch.int64)


class _Done:
    """What is kept of the images that are done.

    Args:
        count: images in all.
        shape: of one.
        device: where they are made.
        finish: as of `sample`.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, int, int],
        device: torch.device,
        finish: Callable[[Tensor], Tensor] | None,
    ) -> None:
        # Made outside inference mode, so that the caller may use it under autograd.
        self.kept = torch.empty((count, *shape), dtype=torch.float32, device=device)
        self._finish, self._begun = finish, finish is None

    def take(self, rows: slice, images: Tensor) -> None:
        """Keep a batch of images [n, C, H, W], or what is made of them."""
        found = images if self._finish is None else self._finish(images)
        if not self._begun:
            with torch.inference_mode(False):
                size = (len(self.kept), *found.shape[1:])
                self.kept = torch.empty(size, dtype=found.dtype, device=found.device)
            self._begun = True
        self.kept[rows] = found


def _check_result(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What a sampler returned, if it is images: a function of the user's may return anything."""
    if not isinstance(x, Tensor) or x.shape != shape:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise Refusal(f"sample: the sampler returned {got}; need images {tuple(shape)}")
    if not bool(torch.isfinite(x).all()):
        raise Refusal("sample: the sampler's images are not finite; need finite values")
    return x


def _telling(progress: Progress, total: int) -> Callable[[], None]:
    """What tells how many evaluations are done, one more at every call."""
    done = itertools.count(1)
    return lambda: progress(next(done), total)


@contextlib.contextmanager
def _eval_mode(net: Network) -> Iterator[None]:
    """Put a module into eval mode (dropout would break a seed's image) and restore it after."""
    training = [m for m in net.modules() if m.training] if isinstance(net, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _normal(
    seeds: Tensor, step: int | Tensor, shape: Sequence[int], stream: int, dtype: torch.dtype
) -> Tensor:
    z = normal(seeds, step, shape, stream=stream, dtype=dtype)
    return z.contiguous(memory_format=torch.channels_last)  # [n, C, H, W]


def _noise(
    seeds: Tensor, shape: Sequence[int], dtype: torch.dtype, expected: int
) -> Iterator[Tensor]:
    """Yield one draw of a batch after the other, without end, several of the expected at once.

    Philox is over 100 small tensor operations whatever the size: at 8x8 pixels a call per step
    would cost more than its arithmetic.
    """
    n, device = len(seeds), seeds.device
    elements = _NOISE_CHUNK_ELEMENTS_CUDA if device.type == "cuda" else _NOISE_CHUNK_ELEMENTS
    most = max(1, elements // max(1, n * math.prod(shape)))
    start = 0
    while True:
        count = max(1, min(most, expected - start))
        draws = torch.arange(start, start + count, device=device).repeat_interleave(n)  # [k n]
        z = _normal(seeds.repeat(count), draws, shape, STEP_STREAM, dtype)  # [k n, C, H, W]
        yield from z.split(n)
        start += count
