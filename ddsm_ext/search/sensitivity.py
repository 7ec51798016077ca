"""Sensitivity: how far each width's prediction is from the full width's, by noise level.

One pass over a batch of images: at each noise level the images get noise, the full width predicts
once, and every other width predicts from the very same input, so that the difference shows the
width alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ddsm_ext.io.document import Document
from ddsm_ext.io.typed import Amount, Count, Width, read
from ddsm_ext.settings import Refusal
from ddsm_ext.width import find_width

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 32  # noise levels that a run measures, spread over its schedule
Network = Callable[..., "Tensor"]  # (x, t, width), or (x, t, width, y) with labels
AddNoise = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class Sensitivity(Document):
    """Mean squared difference to the full width's prediction, by noise level and width.

    Args:
        log_snrs: [B] noise levels, ascending (most noise first).
        widths: [W] widths of the columns.
        errors: [B, W] float64, finite, >= 0.
        images: how many images it was measured on.
        conditions: what else it depends on (weights, images, schedule, type), plain JSON.
    """

    what: ClassVar[str] = "sensitivity"
    file_keys: ClassVar[tuple[str, ...]] = ("images", "log_snrs", "errors", "conditions")

    log_snrs: tuple[float, ...]
    widths: tuple[float, ...]
    errors: np.ndarray
    images: int
    conditions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = np.asarray(self.errors, dtype=np.float64)
        levels = np.asarray(self.log_snrs, dtype=np.float64)
        if values.shape != (len(levels), len(self.widths)) or values.size == 0:
            raise Refusal(
                f"sensitivity: errors has shape {list(values.shape)}; need "
                f"[{len(levels)}, {len(self.widths)}]"
            )
        if not np.isfinite(values).all() or (values < 0).any():
            raise Refusal("sensitivity: an error is negative or not finite; need numbers >= 0")
        if not np.isfinite(levels).all() or (np.diff(levels) <= 0).any():
            raise Refusal("sensitivity: log_snrs are not ascending; need ascending numbers")
        object.__setattr__(self, "errors", values)

    def for_steps(
        self,
        log_snrs: Sequence[float],
        widths: Sequence[float] | None = None,
        gains: Sequence[float] | None = None,
    ) -> np.ndarray:
        """Return the error of every step and width, linear in log-SNR between measured levels.

        Args:
            log_snrs: [S] noise level of each step; beyond the measured ones the nearest counts.
            widths: columns wanted, each measured; None means all.
            gains: [S] what the sampler makes of the output at each step, from
                `sampling.levels.prediction_gains`: each error is multiplied by the square, so that
                it is that of the next image. None leaves the errors of the predictions.

        Returns:
            [S, W] float64.

        Raises:
            ValueError: a width was not measured, or there is another number of gains.
        """
        columns = [_column(self.widths, w) for w in (self.widths if widths is None else widths)]
        found = [np.interp(log_snrs, self.log_snrs, self.errors[:, c]) for c in columns]
        table = np.stack(found, axis=1)  # [S, W]
        if gains is None:
            return table
        if len(gains) != len(table):
            raise Refusal(f"sensitivity: {len(gains)} gains; need one a step, {len(table)}")
        return table * np.square(np.asarray(gains, dtype=np.float64))[:, None]

    def joined(self, other: Sensitivity) -> Sensitivity:
        """Return this one with the widths that another one, of the same levels, measured."""
        if other.log_snrs != self.log_snrs or other.images != self.images:
            raise Refusal("sensitivity: joined with one of other levels or images; need the same")
        new = [i for i, w in enumerate(other.widths) if find_width(self.widths, w) is None]
        widths = (*self.widths, *(other.widths[i] for i in new))
        errors = np.concatenate([self.errors, other.errors[:, new]], axis=1)
        return Sensitivity(self.log_snrs, widths, errors, self.images, self.conditions)

    def to_dict(self) -> dict[str, Any]:
        """Return the sensitivity as its file has it: a column a width."""
        columns = {repr(float(w)): self.errors[:, i].tolist() for i, w in enumerate(self.widths)}
        return {
            "images": self.images,
            "log_snrs": list(self.log_snrs),
            "errors": columns,
            "conditions": self.conditions,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sensitivity:
        """Build a sensitivity from `to_dict()` output.

        Raises:
            ValueError: a value is refused.
        """
        log_snrs = read(tuple[float, ...], values["log_snrs"], "log_snrs")
        columns = read(dict[Width, tuple[Amount, ...]], values["errors"], "errors")
        for width, column in columns.items():
            if len(column) != len(log_snrs):
                raise Refusal(
                    f"errors of width {width:g} has {len(column)} values; need one a noise level, "
                    f"{len(log_snrs)}"
                )
        return cls(
            log_snrs,
            tuple(columns),
            np.array(list(columns.values()), dtype=np.float64).T,
            read(Count, values["images"], "images"),
            read(dict[str, Any], values["conditions"], "conditions"),
        )

    @classmethod
    def from_content(cls, content: Any, source: str) -> Self:
        """Read a file's content; one from before conditions were kept has none."""
        if isinstance(content, dict):
            content = {"conditions": {}, **content}
        return super().from_content(content, source)


def _column(widths: Sequence[float], width: float) -> int:
    index = find_width(widths, width)
    if index is None:
        raise Refusal(f"sensitivity: width {width:g} was not measured; need one of {list(widths)}")
    return index


def measure_sensitivity(
    net: Network,
    images: Tensor,
    *,
    add_noise: AddNoise,
    timesteps: Sequence[float],
    log_snrs: Sequence[float],
    widths: Sequence[float],
    noise: Callable[[int], Tensor],
    labels: Tensor | None = None,
    batch_size: int = 64,
    conditions: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """e[b, w] = mean over images and pixels of (net(x_t, t, w) - net(x_t, t, 1))^2 at t = t_b.

    Args:
        net: the network, (x [N, C, H, W], t [N], width) -> prediction [N, C, H, W]; with labels
            (x, t, width, y [N]).
        images: [N, C, H, W] floating point, on the network's device.
        add_noise: (x0, noise, t) -> x_t.
        timesteps: [B] one timestep a noise level, in any order; whole numbers are passed as int64.
        log_snrs: [B] log-SNR of each.
        widths: widths to measure; the full width's error is 0 by definition.
        noise: index of a level -> its noise [N, C, H, W].
        labels: [N] class of each image, of a network that takes them; None: it does not.
        batch_size: images run at once.
        conditions: what the errors depend on, stored with them; None stores nothing.
        progress: called with (levels done, levels in all); None for silence.

    Raises:
        ValueError: there are no images, the lengths differ, or a prediction is not finite.
    """
    import torch

    if len(images) == 0 or len(timesteps) != len(log_snrs) or not timesteps or batch_size < 1:
        raise Refusal(
            f"measure_sensitivity: {len(images)} images, {len(timesteps)} timesteps, "
            f"{len(log_snrs)} log_snrs, batch_size {batch_size}; need images, one log-SNR a "
            "timestep, batch_size >= 1"
        )
    rows = []
    with torch.no_grad():
        for level, timestep in enumerate(timesteps):
            level_noise = noise(level)
            total = np.zeros(len(widths))
            for start in range(0, len(images), batch_size):
                rows_of_batch = slice(start, start + batch_size)
                x0 = images[rows_of_batch]  # [n, C, H, W]
                t = torch.full((len(x0),), timestep, dtype=torch.int64, device=x0.device)
                x_t = add_noise(x0, level_noise[rows_of_batch], t)
                classes = () if labels is None else (labels[rows_of_batch],)
                total += _squared_differences(net, x_t, t, widths, *classes)
            rows.append(total / images.numel())
            if not np.isfinite(rows[-1]).all():
                raise Refusal(
                    f"measure_sensitivity: a prediction at timestep {timestep} is not finite; "
                    "need a trained network"
                )
            if progress is not None:
                progress(level + 1, len(timesteps))
    order = np.argsort(np.asarray(log_snrs, dtype=np.float64), kind="stable")
    return Sensitivity(
        tuple(float(log_snrs[i]) for i in order),
        tuple(float(w) for w in widths),
        np.stack(rows)[order],
        len(images),
        dict(conditions or {}),
    )


def _squared_differences(
    net: Network, x: Tensor, t: Tensor, widths: Sequence[float], *labels: Tensor
) -> np.ndarray:
    """Sums over images and pixels of the squared difference to the full width, [W]."""
    full = net(x, t, 1.0, *labels).double()
    others = (None if w == 1.0 else net(x, t, w, *labels).double() for w in widths)
    sums = [0.0 if other is None else (other - full).square().sum() for other in others]
    return np.array([float(s) for s in sums])
