"""Adam over a network's parameters, and steps of it that no NaN gets through."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddsm_ext.settings import Refusal
from ddsm_ext.training.loop_config import LoopConfig


def make_optimizer(net: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over all parameters, with the fused kernel."""
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    parameters = [p for p in net.parameters() if p.requires_grad]
    if not parameters:
        raise Refusal("train: the network has no parameters; need at least one to train")
    return kind(
        parameters,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def gradients_of(net: nn.Module) -> list[Tensor]:
    """The gradients that the parameters have."""
    return [p.grad for p in net.parameters() if p.grad is not None]


def clipped_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: LoopConfig,
    step: int,
    losses: Tensor,
) -> tuple[Sequence[float], float, bool]:
    """One step of the optimiser with clipped gradients, unless something is not finite.

    Args:
        net: whose gradients are there.
        optimizer: over its parameters.
        config: rate of the step, and largest norm of the gradients.
        step: 0-based.
        losses: that the gradients are of, [n].

    Returns:
        the losses, the norm of the gradients before the clip, and whether weights were changed:
        they are not where one of those is not finite.
    """
    norm = torch.nn.utils.get_total_norm(gradients_of(net))
    *values, grad_norm = [*losses.tolist(), norm.item()]
    if not all(math.isfinite(value) for value in (*values, grad_norm)):
        return values, grad_norm, False
    if config.grad_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(net.parameters(), config.grad_clip, norm)
    for group in optimizer.param_groups:
        group["lr"] = config.lr_at(step)
        for parameter in group["params"]:
            # The fused kernel walks both memories side by side: they need one layout.
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
    optimizer.step()
    return values, grad_norm, True
