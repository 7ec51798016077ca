"""Arguments of sliced_conv2d, sliced_linear and their gradients that opcheck is given."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from ops.op_checks import normal, seeded

# kernel, stride, upsample
WINDOWS = ((3, 1, False), (3, 2, False), (1, 1, False), (1, 2, False), (3, 1, True), (3, 2, True))
Samples = dict[str, list[tuple[Any, ...]]]  # op -> calls


def conv2d_samples() -> Samples:
    forward, grad_x, grad_weight = [], [], []
    cases = itertools.product(WINDOWS, (False, True), (torch.float32, torch.bfloat16))
    for index, ((kernel, stride, upsample), two, dtype) in enumerate(cases):
        generator = seeded(index)
        weight = normal(generator, 9, 12, kernel, kernel) * (12 * kernel**2) ** -0.5
        weight, bias = weight.to(dtype), normal(generator, 9, dtype=dtype)
        x = normal(generator, 2, 5, 4, 6, dtype=dtype).requires_grad_(index % 3 == 0)
        x2 = normal(generator, 2, 3, 4, 6, dtype=dtype) if two else None
        if index % 2:
            x = x.detach().contiguous(memory_format=torch.channels_last)
        window = (stride, kernel // 2, upsample)
        arguments = (x, x2, weight.requires_grad_(), bias if index % 4 else None, 7, 6, *window)
        # panels, algo, tf32, pad_end
        choice = (None, 0, False, True) if kernel == 3 and index % 3 == 0 else ()
        arguments = (*arguments, *choice)
        forward.append(arguments)
        grad_y = torch.ops.ddsm_ext.sliced_conv2d(*arguments).detach()
        plain = (weight.detach(), 5, 0, 4, 6)
        grad_x.append((grad_y, *plain, *window, *choice))
        grads = (torch.zeros_like(plain[0]), torch.zeros_like(bias))
        grad_weight.append((grad_y, x.detach(), x2, 6, *window, *grads, *choice[1:]))
    return {
        "sliced_conv2d": forward,
        "sliced_conv2d_grad_x": grad_x,
        "sliced_conv2d_grad_weight": grad_weight,
    }


def linear_samples() -> Samples:
    forward, grad_x, grad_weight = [], [], []
    cases = itertools.product((1, 4, 20), (torch.float32, torch.bfloat16), (False, True))
    for index, (rows, dtype, wants_grad) in enumerate(cases):
        generator = seeded(index)
        weight = (normal(generator, 9, 12) * 12**-0.5).to(dtype)
        bias = normal(generator, 9, dtype=dtype)
        x = normal(generator, 2, rows, 5, dtype=dtype)
        forward.append(
            (x.requires_grad_(wants_grad), weight.requires_grad_(), bias if index % 2 else None, 7)
        )
        grad_y = normal(generator, 2, rows, 7, dtype=dtype)
        grad_x.append((grad_y, weight.detach(), 5))
        grads = (torch.zeros_like(weight.detach()), torch.zeros_like(bias))
        grad_weight.append((grad_y, x.detach(), *grads))
    for index, (rows, activation) in enumerate(itertools.product((1, 20), (0, 1, 3))):
        generator = seeded(20 + index)
        weight, bias = normal(generator, 2, 9, 12) * 12**-0.5, normal(generator, 2, 9)
        x, columns = normal(generator, 2, rows, 5), 7 if activation == 3 else 14
        gate, residual = normal(generator, 2, columns), normal(generator, 2, rows, columns)
        leaves = [t.requires_grad_(index % 2 == 1) for t in (x, weight, bias, gate, residual)]
        forward.append((*leaves[:3], 7, False, activation, *leaves[3:]))
        grad_y = normal(generator, 2, rows, 14)
        grad_x.append((grad_y, weight.detach(), 5))
        grads = (torch.zeros(weight.shape), torch.zeros(bias.shape))
        grad_weight.append((grad_y, x.detach(), *grads))
    return {
        "sliced_linear": forward,
        "sliced_linear_grad_x": grad_x,
        "sliced_linear_grad_weight": grad_weight,
    }
