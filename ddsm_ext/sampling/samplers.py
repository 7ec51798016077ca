"""Step-aware sampling: DDPM ancestral sampling and DDIM with one width per noise level."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddsm_ext.diffusion.noise import as_seeds, normal
from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.plan import Coefficients, Step, plan_coefficients, plan_steps
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal

# Counter streams: x_T is (stream 0, step 0), the noise of the sampler's i-th step (stream 1, i).
INITIAL_STREAM = 0
STEP_STREAM = 1
# 2**18 elements take 2 MB in each of Philox's int64 tensors, which stays in a core's cache; on a
# GPU larger chunks mean fewer launches.
_NOISE_CHUNK_ELEMENTS = 2**18
_NOISE_CHUNK_ELEMENTS_CUDA = 2**22

Network = Callable[[Tensor, Tensor, float], Tensor]
Progress = Callable[[int, int], None]
Callback = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class _Run:
    """What all batches of one `sample` call share."""

    net: Network
    steps: list[Step]
    coefficients: list[Coefficients]
    timesteps: Tensor  # [steps] int64 on the device
    shape: tuple[int, int, int]
    clip: bool
    dtype: torch.dtype
    device: torch.device
    report: Callable[[], None]  # called after every step of a batch
    callback: Callback | None


def sample(
    net: Network,
    schedule: NoiseSchedule,
    strategy: Strategy | float,
    seeds: Tensor | Iterable[int],
    shape: Sequence[int],
    sampler: SamplerConfig | None = None,
    *,
    parameterisation: str = "epsilon",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw one image per seed; an image depends on its seed, not on its batch.

    Args:
        net: called as `net(x, t, width)`: x [n, C, H, W] channels_last, t [n] int64, width float,
            returning [n, C, H, W]; a module runs in eval mode, in which a `SlimmableNetwork` runs
            its compiled steps (its `run_modules` never does).
        schedule: the noise schedule that the network was trained with.
        strategy: width per noise level, or one width in (0, 1] for all steps.
        seeds: [N] integers, one per image.
        shape: (C, H, W) of an image.
        sampler: kind and step count; None takes `SamplerConfig()`: DDPM with all timesteps.
        parameterisation: what the network predicts: "epsilon", "x0" or "v".
        batch_size: images that run together, at least 1.
        device: where the network lives.
        dtype: floating dtype of the network's input; the image itself stays in float32 (float64
            for dtype float64).
        progress: called after every step with (steps done, steps in all), over all batches.
        callback: called in every step with (step index, x_t, predicted x0) of the running batch.

    Returns:
        [N, C, H, W] float32 on `device`, clipped to [-1, 1].

    Raises:
        ValueError: an argument does not fit, or the network's output has another shape or is not
            finite (the error names the step and width).

    Source: Ho et al. 2020, algorithm 2; Song et al. 2021, eq. 12.
    """
    sampler = sampler or SamplerConfig()
    device = torch.device(device)
    shape = _check_arguments(shape, batch_size, dtype)
    seeds = as_seeds(seeds)
    steps = plan_steps(schedule, strategy, sampler)
    batches = range(0, len(seeds), batch_size)
    done = itertools.count(1)

    def report() -> None:
        if progress is not None:
            progress(next(done), len(batches) * len(steps))

    run = _Run(
        net=net,
        steps=steps,
        coefficients=plan_coefficients(schedule, steps, sampler, parameterisation),
        timesteps=torch.tensor([step.t for step in steps], dtype=torch.int64, device=device),
        shape=shape,
        clip=sampler.clip_denoised,
        dtype=dtype,
        device=device,
        report=report,
        callback=callback,
    )
    # Made outside inference mode, so that the caller may use the images under autograd.
    images = torch.empty((len(seeds), *shape), dtype=torch.float32, device=device)  # [N, C, H, W]
    with torch.inference_mode(), _eval_mode(net):
        for start in batches:
            rows = slice(start, start + batch_size)
            images[rows] = _sample_batch(run, seeds[rows])
    return images


def _check_arguments(
    shape: Sequence[int], batch_size: int, dtype: torch.dtype
) -> tuple[int, int, int]:
    dims = tuple(int(d) for d in shape)
    if len(dims) != 3 or min(dims) < 1:
        raise Refusal(f"sample: shape is {tuple(shape)}; need (C, H, W), each at least 1")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise Refusal(f"sample: batch_size is {batch_size!r}; need an int >= 1")
    if not dtype.is_floating_point:
        raise Refusal(f"sample: dtype is {dtype}; need a floating dtype")
    return dims


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


def _sample_batch(run: _Run, seeds: Tensor) -> Tensor:
    """Run all steps for one batch of seeds; returns [n, C, H, W] clipped to [-1, 1]."""
    n, count = len(seeds), len(run.steps)
    state_dtype = torch.promote_types(run.dtype, torch.float32)
    seeds = seeds.to(run.device)
    x = normal(seeds, 0, run.shape, stream=INITIAL_STREAM, dtype=state_dtype)  # [n, C, H, W]
    x = x.contiguous(memory_format=torch.channels_last)
    step_noise = _step_noise(run, seeds, state_dtype)
    # On a GPU a check per step would stall it: the first bad step is noted there, read at the end.
    first_bad = torch.full((), count, dtype=torch.int64, device=run.device)
    for index, (step, coefficient) in enumerate(zip(run.steps, run.coefficients, strict=True)):
        t = run.timesteps[index].expand(n)  # [n]
        prediction = run.net(x.to(run.dtype), t, step.width)
        if prediction.shape != x.shape:
            raise Refusal(
                f"sample: the network returned shape {tuple(prediction.shape)} at width "
                f"{step.width}; need {tuple(x.shape)}"
            )
        bad = torch.where(torch.isfinite(prediction).all(), count, index)
        first_bad = torch.minimum(first_bad, bad)
        if run.device.type == "cpu":
            _refuse_bad(run, int(first_bad))
        prediction = prediction.to(state_dtype)
        x0 = (coefficient.x0_from_x * x).add_(prediction, alpha=coefficient.x0_from_prediction)
        if run.clip:
            x0.clamp_(-1.0, 1.0)
        if run.callback is not None:
            run.callback(index, x, x0)
        x = (coefficient.x * x).add_(x0, alpha=coefficient.x0)
        if coefficient.noise > 0.0:
            x.add_(next(step_noise), alpha=coefficient.noise)
        run.report()
    _refuse_bad(run, int(first_bad))
    return x.clamp(-1.0, 1.0).to(torch.float32)


def _step_noise(run: _Run, seeds: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the noise [n, C, H, W] of every step that adds some, several steps computed at once.

    Philox is over 100 small tensor operations whatever the size: at 8x8 pixels a call per step
    would cost more than its arithmetic.
    """
    noisy = [i for i, coefficient in enumerate(run.coefficients) if coefficient.noise > 0.0]
    n = len(seeds)
    on_cuda = run.device.type == "cuda"
    elements = _NOISE_CHUNK_ELEMENTS_CUDA if on_cuda else _NOISE_CHUNK_ELEMENTS
    chunk = max(1, elements // max(1, n * math.prod(run.shape)))
    for start in range(0, len(noisy), chunk):
        indices = torch.tensor(noisy[start : start + chunk], device=run.device)  # [k]
        z = normal(
            seeds.repeat(len(indices)),
            indices.repeat_interleave(n),
            run.shape,
            stream=STEP_STREAM,
            dtype=dtype,
        )  # [k n, C, H, W]
        yield from z.contiguous(memory_format=torch.channels_last).split(n)


def _refuse_bad(run: _Run, index: int) -> None:
    if index < len(run.steps):
        step = run.steps[index]
        raise Refusal(
            f"sample: the network's output is not finite in step {index + 1} of {len(run.steps)} "
            f"(t = {step.t}) at width {step.width}; need finite values"
        )
