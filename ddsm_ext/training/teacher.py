"""The network whose full width narrow ones are drawn to: the live one, its average, or the origin.

The live one's prediction comes free with a step of the sandwich rule, is as noisy as its weights
are, and is there for the full width's own noise alone. The average costs a forward pass more, is
the better network, and predicts wherever it is asked. A run that is tuned trains its full width on
a part of the noise levels, or nowhere; the network that it began with stays a teacher for all.
"""

from __future__ import annotations

from torch import nn

from ddsm_ext.settings import Refusal
from ddsm_ext.training.config import TrainConfig, TuneConfig
from ddsm_ext.training.ema import Ema


def check_teacher(config: TrainConfig, tune: TuneConfig | None, origin: nn.Module | None) -> None:
    """Refuse a teacher that is not there, and what a step of one width cannot do."""
    tuned = tune is not None and tune.strategy is not None
    if config.teacher == "origin" and config.distill_weight and origin is None:
        raise Refusal(
            "train: teacher is 'origin' and there is none, as in a run that is not tuned; need "
            "'live' or 'ema'"
        )
    if tuned and config.teacher == "live" and config.distill_weight:
        raise Refusal(
            "train: teacher is 'live' in a run that is tuned, whose steps run one width; need "
            "'origin' or 'ema'"
        )
    if tuned and config.t_importance:
        raise Refusal(
            f"train: t_importance is {config.t_importance:g} in a run that is tuned; need 0, as "
            "the strategy decides t"
        )


def teacher_of(
    config: TrainConfig, net: nn.Module, ema: Ema, origin: nn.Module | None
) -> nn.Module | None:
    """Return the frozen network that teaches, in eval mode; None: the live one, or nobody.

    Args:
        config: who teaches, and whether anybody is asked.
        net: the network that is trained.
        ema: its average, which the teacher "ema" holds and moves with.
        origin: the network before it was tuned.
    """
    if not (config.distill_weight or config.t_importance) or config.teacher == "live":
        return None
    if config.teacher == "ema":
        return ema.as_network(net)
    return None if origin is None else origin.eval().requires_grad_(False)
