"""The denoiser that samplers call: a network, its prediction, and a width per noise level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddsm_ext.diffusion.level import Level
from ddsm_ext.diffusion.prediction import Prediction, prediction_named
from ddsm_ext.sampling.guidance import Guidance
from ddsm_ext.sampling.strategy import Strategy, as_strategy
from ddsm_ext.settings import Refusal, TypeRefusal


@dataclass(frozen=True)
class Evaluation:
    """One network evaluation of a sampler.

    Args:
        index: how many came before it.
        level: noise level that the network is asked about.
        width: width that the strategy gives this level.
        weak_width: width of the weak model that guides; None: none runs.

    Raises:
        ValueError: the level is the clean image, of which there is nothing to predict.
    """

    index: int
    level: Level
    width: float
    weak_width: float | None = None

    def __post_init__(self) -> None:
        if not self.level.variance > 0.0:
            raise Refusal(
                f"sample: evaluation {self.index + 1} of the sampler is at the clean image "
                "(sigma = 0); need a noisy level"
            )

    @property
    def t(self) -> float:
        """Timestep of the level; an int where it is whole."""
        return self.level.t

    @property
    def widths(self) -> tuple[float, ...]:
        """Width of every run of the network."""
        return (self.width,) if self.weak_width is None else (self.width, self.weak_width)

    @property
    def log_snr(self) -> float:
        """Noise level as the strategy reads it."""
        return self.level.log_snr


Network = Callable[..., Tensor]  # (x, t, width), or (x, t, width, y) with labels
Callback = Callable[[Evaluation, Tensor, Tensor], Tensor | None]
Classifier = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x, t, y) -> log p [n]


@dataclass
class Denoiser:
    """Called as `(x, level) -> x0`, the image that the network predicts in x.

    One denoiser serves one batch from noise to image. Gradients are the caller's: under autograd
    they pass through.

    Args:
        net: called as `net(x, t, width)`, with labels as `net(x, t, width, y)`: t [n] int64 where
            it is whole, else float32 (float64 for images of float64); returns the shape of x, or
            twice its channels, of which the second half is a learned variance.
        strategy: width per noise level, or one width for all.
        parameterisation: what the network predicts and is given: a name in
            `diffusion.PREDICTIONS`, or a row such as `diffusion.prediction_of(config)`.
        labels: [n] int64 class of each image, for a network that takes them.
        clip: clip each x0 to [-1, 1].
        dtype: floating dtype of the network's input; None takes x's. x0 has the dtype of x.
        callback: called with (evaluation, x, x0) before x0 is used. A returned tensor replaces x0
            (guidance); None leaves it.
        progress: called after every evaluation.
        guidance: a weak model beside the network; None: none.
        classifier: called as (x, t, labels) with x [n, C, H, W] that wants a gradient, and t [n]
            as the network has it; returns log p(label | x, t) [n], already scaled. Its gradient
            moves x0 by sigma² / alpha times it (Dhariwal & Nichol 2021, algorithm 2); with
            `moves_mean` a sampler moves its mean by it.
        moves_mean: whether the sampler asks for `gradient` and moves x0 itself.

    Raises:
        ValueError: an argument does not fit; the network's output or the callback's image has
            another shape or is not finite (on a GPU the latter only by `check`).
    """

    net: Network
    strategy: Strategy | float = 1.0
    parameterisation: str | Prediction = "epsilon"
    labels: Tensor | None = None
    clip: bool = False
    dtype: torch.dtype | None = None
    callback: Callback | None = None
    progress: Callable[[], None] | None = None
    guidance: Guidance | None = None
    classifier: Classifier | None = None
    moves_mean: bool = False
    _widths: Strategy = field(init=False, repr=False)
    _row: Prediction = field(init=False, repr=False)
    _count: int = field(init=False, repr=False, default=0)
    _variance: Tensor | None = field(init=False, repr=False, default=None)
    _gradient: Tensor | None = field(init=False, repr=False, default=None)
    _unread: list[tuple[str, Evaluation, Tensor]] = field(
        init=False, repr=False, default_factory=list
    )

    def __post_init__(self) -> None:
        self._widths = as_strategy(self.strategy)
        self._row = prediction_named("Denoiser: parameterisation", self.parameterisation)
        guidance = self.guidance
        if guidance is not None and guidance.null_label is not None and self.labels is None:
            raise Refusal(
                f"sample: guidance is {guidance.scale:g} away from no class, and there are no "
                "labels; need the class of each image"
            )

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        evaluation = evaluation_at(self._count, level, self._widths, self.guidance)
        self._count += 1
        prediction = self._predict(x, evaluation)  # [n, C, H, W]
        from_x, from_prediction = self._row.x0_map(level)
        x0 = (from_x * x).add_(prediction, alpha=from_prediction)
        if self.clip:
            x0.clamp_(-1.0, 1.0)
        if self.classifier is not None:
            self._gradient = self._slope(self.classifier, x, evaluation)
            if not self.moves_mean:
                x0.add_(self._gradient, alpha=level.variance / level.alpha)
        if self.callback is not None:
            x0 = self._called_back(self.callback, evaluation, x, x0)
        if self.progress is not None:
            self.progress()
        return x0

    def width_at(self, level: Level) -> float:
        """Return the width that the strategy gives a level."""
        return self._widths.width_at(level.log_snr)

    def variance_fraction(self) -> Tensor:
        """Return (1 + second half of the last output) / 2, [n, C, H, W]: learned variances.

        Raises:
            ValueError: the network's output has no second half.

        Source: Nichol & Dhariwal 2021, eq. 15, as guided-diffusion scales it.
        """
        if self._variance is None:
            raise Refusal(
                "sample: variance is 'learned', the network returned as many channels as the "
                "image has; need twice as many, or variance 'fixed_large' or 'fixed_small'"
            )
        return self._variance.add(1.0).mul_(0.5)

    def gradient(self) -> Tensor | None:
        """Return the classifier's gradient at the last x, [n, C, H, W], for the mean; or None."""
        return self._gradient if self.moves_mean else None

    def check(self) -> None:
        """Refuse what was not finite so far; on a GPU this waits for it.

        Raises:
            ValueError: naming the first evaluation whose values were not finite.
        """
        if self._unread:
            finite = torch.stack([value for _, _, value in self._unread]).tolist()
            unread, self._unread = self._unread, []
            for (name, evaluation, _), good in zip(unread, finite, strict=True):
                if not good:
                    raise _not_finite(name, evaluation)

    def _predict(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        """The network's output, guided; keeps the variance of the strong model."""
        scale = self._row.input_scale(evaluation.level)
        images = x if scale == 1.0 else scale * x
        images = images if self.dtype in (None, x.dtype) else images.to(self.dtype)
        if evaluation.weak_width is None or self.guidance is None:
            output = self._run(images, evaluation, evaluation.width, self.labels)
        else:
            output = self._guided(images, evaluation, self.guidance).to(x.dtype)
        channels = x.shape[1]
        twice = output.shape[1] > channels
        self._variance = output[:, channels:].to(x.dtype) if twice else None
        return output[:, :channels] if twice else output

    def _guided(self, images: Tensor, evaluation: Evaluation, guidance: Guidance) -> Tensor:
        """weak + scale (strong - weak); in one batch where both run at one width."""
        weak_labels = labels = self.labels
        if labels is not None and guidance.null_label is not None:
            weak_labels = torch.full_like(labels, guidance.null_label)
        width, weak_width = evaluation.widths
        if width == weak_width and labels is not None and weak_labels is not None:
            # A network of several labels an image computes once what they take no part in.
            once = getattr(self.net, "takes_several_labels", False)
            both = images if once else torch.cat([images, images])
            classes = torch.cat([labels, weak_labels])
            strong, weak = self._run(both, evaluation, width, classes).chunk(2)
        else:
            strong = self._run(images, evaluation, width, labels)
            weak = self._run(images, evaluation, weak_width, weak_labels)
        channels = images.shape[1]
        exact = torch.promote_types(strong.dtype, torch.float32)
        mean, weak = strong[:, :channels].to(exact), weak[:, :channels].to(exact)
        guided = torch.lerp(weak, mean, guidance.scale)
        variance = strong[:, channels:]
        return torch.cat([guided, variance.to(exact)], 1) if variance.shape[1] else guided

    def _run(
        self, images: Tensor, evaluation: Evaluation, width: float, labels: Tensor | None
    ) -> Tensor:
        """What the network returns for [n, C, H, W], of as many channels or twice as many."""
        t = self._time(images, evaluation.level)
        output = self.net(images, t, width, *(() if labels is None else (labels,)))
        shape, count = getattr(output, "shape", None), len(images if labels is None else labels)
        wanted = (count, *images.shape[1:])
        twice = (count, 2 * images.shape[1], *images.shape[2:])
        if not isinstance(output, Tensor) or shape not in (wanted, twice):
            got = type(output).__name__ if shape is None else f"shape {tuple(shape)}"
            raise Refusal(
                f"sample: the network returned {got} at width {width}; need a tensor "
                f"{wanted}, or {twice} with a learned variance"
            )
        self._note("the network's output", output, evaluation)
        return output

    def _time(self, images: Tensor, level: Level) -> Tensor:
        """What the network is given as its time, [n]: one number, as its stride 0 tells, which is
        embedded once."""
        time = self._row.time(level)
        whole = float(time).is_integer()
        dtype = torch.int64 if whole else torch.promote_types(images.dtype, torch.float32)
        return torch.full((1,), time, dtype=dtype, device=images.device).expand(len(images))

    def _slope(self, classifier: Classifier, x: Tensor, evaluation: Evaluation) -> Tensor:
        """Gradient of the classifier's log probabilities by x, [n, C, H, W]."""
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            found = classifier(at, self._time(at, evaluation.level), self.labels)
            if not isinstance(found, Tensor) or found.shape != (len(x),) or not found.requires_grad:
                got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found)
                raise Refusal(
                    f"sample: the classifier returned {got}; need log probabilities [{len(x)}] "
                    "that have a gradient by x"
                )
            (gradient,) = torch.autograd.grad(found.sum(), at)
        self._note("the classifier's gradient", gradient, evaluation)
        return gradient

    def _called_back(
        self, callback: Callback, evaluation: Evaluation, x: Tensor, x0: Tensor
    ) -> Tensor:
        """What the callback makes of x0."""
        guided = callback(evaluation, x, x0)
        if guided is None:
            return x0
        if not isinstance(guided, Tensor):
            raise TypeRefusal(
                f"sample: the callback returned {type(guided).__name__}; need a tensor or None"
            )
        if guided.shape != x0.shape:
            raise Refusal(
                f"sample: the callback returned shape {tuple(guided.shape)}; need {tuple(x0.shape)}"
            )
        if not torch.is_grad_enabled():
            guided = guided.detach()  # of a callback that turned gradients on for itself
        self._note("the callback's image", guided, evaluation)
        return guided.to(x0.dtype)

    def _note(self, name: str, values: Tensor, evaluation: Evaluation) -> None:
        """Check values at once on the CPU; elsewhere that would stall, so `check` reads later."""
        if values.device.type != "cpu":
            self._unread.append((name, evaluation, torch.isfinite(values).all()))
        # One pass for isfinite's four; NaN is both the least and the greatest.
        elif not all(map(math.isfinite, values.detach().aminmax())):
            raise _not_finite(name, evaluation)


def evaluation_at(
    index: int, level: Level, widths: Strategy, guidance: Guidance | None
) -> Evaluation:
    """Return what a denoiser runs at a level."""
    width = widths.width_at(level.log_snr)
    weak = None if guidance is None else guidance.weak_width(level.log_snr, width)
    return Evaluation(index, level, width, weak)


def _not_finite(name: str, evaluation: Evaluation) -> Refusal:
    return Refusal(
        f"sample: {name} is not finite in evaluation {evaluation.index + 1} "
        f"(t = {evaluation.t:g}) at width {evaluation.width}; need finite values"
    )
