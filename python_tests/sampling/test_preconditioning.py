"""Denoisers of EDM's networks against the reference's own, whose numbers stay outside."""

from __future__ import annotations

import math

import pytest
import torch
from compat.test_edm import CASES, Golden
from sampling.mixture import close, exploding
from torch import Tensor

from ddsm_ext.sampling import Denoiser


@pytest.mark.parametrize("row", ["edm", "vp", "ve"])
@pytest.mark.parametrize("name", CASES)
def test_the_image_that_a_network_predicts(name: str, row: str) -> None:
    stored, found = Golden(name), []
    key = f"{row.upper()}Precond"
    for i, sigma in enumerate(stored.data[f"{key}/sigma"].tolist()):
        one = slice(i, i + 1)
        augment = None if stored.augment is None else stored.augment[one]

        def net(
            x: Tensor, t: Tensor, width: float, *y: Tensor, augment: Tensor | None = augment
        ) -> Tensor:
            return stored.net(x, t, width, *y, augment=augment)

        labels = None if stored.y is None else stored.y[one]
        denoise = Denoiser(net, parameterisation=row, labels=labels)
        with torch.no_grad():
            found.append(denoise(stored.x[one] * (1 + sigma), exploding(-2 * math.log(sigma))))
    close(torch.cat(found), stored[f"{key}/D"])
