"""Ways of editing a weight, most of which torch does not count."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


def optimizer_step(weight: Tensor, **options: bool) -> None:
    optimizer = torch.optim.AdamW([weight], lr=0.5, **options)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    weight.grad = None


def storage_write(weight: Tensor) -> None:
    storage = weight.untyped_storage()
    storage[3] = storage[3] ^ 128  # the sign of the first element


def swapped(weight: Tensor) -> None:
    torch.utils.swap_tensors(weight, nn.Parameter(weight.detach() * 1.5))


def through_an_address(weight: Tensor) -> None:
    ctypes.memset(weight.data_ptr(), 0, 4)


def from_a_vector(weight: Tensor) -> None:
    nn.utils.vector_to_parameters(weight.detach().flatten() * 1.5, [weight])


def one_element(weight: Tensor) -> None:
    weight.data.view(-1)[-1] += 1.0


def set_from_it(weight: Tensor) -> None:
    torch.empty(0).set_(weight.detach()).mul_(1.5)


def of_an_old_capsule(weight: Tensor) -> None:
    torch.from_dlpack(torch.to_dlpack(weight.detach())).mul_(1.5)


@contextmanager
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        store = "file://" + os.path.join(folder, "store")
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def received(weight: Tensor) -> None:
    dist.scatter(weight.detach(), [weight.detach() * 1.5])


EDITS: dict[str, Callable[[Tensor], object]] = {
    "data, all but the first rows": lambda w: w.data[1:].zero_(),
    "data, all but the first columns": lambda w: w.data.view(len(w), -1)[:, 1:].zero_(),
    "data, every other filter": lambda w: w.data[1::2].zero_(),
    "data, one filter": lambda w: w.data[5].fill_(1.0),
    "data, one element": one_element,
    "data, clipped": lambda w: w.data.clamp_(-0.01, 0.01),
    "data, small ones pruned": lambda w: w.data.masked_fill_(w.data.abs() < 0.02, 0),
    "data, negated": lambda w: w.data.neg_(),
    "data of a view": lambda w: w.detach()[3:].data.mul_(1.5),
    "data, another": lambda w: setattr(w, "data", w.data * 1.5),
    "NumPy, rows": lambda w: w.detach().numpy().__setitem__(slice(3, 5), 1.0),
    "NumPy's asarray": lambda w: np.multiply(np.asarray(w.detach()), 1.5, np.asarray(w.detach())),
    "NumPy by DLPack": lambda w: torch.from_dlpack(w.detach()).mul_(1.5),
    "a DLPack capsule": of_an_old_capsule,
    "storage": storage_write,
    "another tensor on it": set_from_it,
    "an address": through_an_address,
    "vector_to_parameters": from_a_vector,
    "swap_tensors": swapped,
    "an optimizer": optimizer_step,
    "a foreach optimizer": lambda w: optimizer_step(w, foreach=True),
    "a fused optimizer": lambda w: optimizer_step(w, fused=True),
    "in place": lambda w: torch.no_grad()(w.mul_)(1.5),
}
