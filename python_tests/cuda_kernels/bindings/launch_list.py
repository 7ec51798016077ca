"""Lists the launches of a step of the CIFAR-10 network, as JSON, for widths and batches.

Arguments: the library that `library.build` makes, then perhaps --widths, --batches and --dtype.
The host code is the real one, for a Hopper GPU with 132 multiprocessors; no kernel runs. Each call
of an op has its arguments (tensors as their dtype and shape) and its launches, each with kernel,
grid (blocks, blocks_y), threads and whether it overlaps the launch before. An op of torch counts as
one launch unless it only makes a view; attention, torch's on a GPU, stands as this package's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddsm_ext.models import SlimmableNetwork, preset
from ddsm_ext.ops._fused import make_tickets
from ddsm_ext.runtime.cuda import run_step

MULTIPROCESSORS = 132  # of an H100 SXM and of an H200
WIDTHS, BATCHES = (1.0, 0.5, 0.25), (1, 16, 128)


def load(path: str) -> ctypes.CDLL:
    """Put the bindings in place of the CPU's kernels, without running any kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that kernels are replaced
        torch.ops.load_library(path)
    library = ctypes.CDLL(path)
    library.take_launches.restype = ctypes.c_char_p
    library.want_kernels(0)
    library.set_hopper(1)
    library.set_multiprocessors(MULTIPROCESSORS)
    return library


def network(dtype: torch.dtype) -> SlimmableNetwork:
    """The CIFAR-10 network, laid out as on a GPU."""
    net = SlimmableNetwork(preset("cifar10")).to(dtype).eval()
    return net.to(memory_format=torch.channels_last)


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def _parsed(line: str) -> dict[str, Any]:
    name, sizes = line.rstrip("+").split()
    blocks, blocks_y, threads = map(int, sizes.split("x"))
    overlaps = line.endswith("+")
    return {"kernel": name, "grid": [blocks, blocks_y], "threads": threads, "overlaps": overlaps}


class _Listing(TorchDispatchMode):
    """Notes every op that launches something."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self._library = library
        self.calls: list[dict[str, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._library.take_launches()
        result = func(*args, **(kwargs or {}))
        name = str(func._schema.name)
        lines = self._library.take_launches().decode().splitlines()
        if name.startswith("ddsm_ext::"):
            launches = [_parsed(line) for line in lines]
        elif any(returned.alias_info is not None for returned in func._schema.returns):
            launches = [] if not func._schema.is_mutable else [{"kernel": name}]
        else:
            launches = [{"kernel": name}]
        if launches:
            arguments = [_described(value) for value in (*args, *(kwargs or {}).values())]
            self.calls.append({"op": name, "arguments": arguments, "launches": launches})
        return result


@torch.no_grad()
def launches_of_step(
    library: ctypes.CDLL, net: SlimmableNetwork, width: float, batch: int
) -> list[dict[str, Any]]:
    """The calls of a step that launch something, in order."""
    size = net.config.image_size
    x = torch.empty(batch, net.config.image_channels, size, size, dtype=net.head.weight.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    t, tickets = torch.zeros(batch), make_tickets(x.device)
    listing = _Listing(library)
    with listing:
        run_step(net, width, {"x": x, "t": t}, tickets)
    return listing.calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library")
    parser.add_argument("--widths", type=float, nargs="+", default=WIDTHS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    library = load(arguments.library)
    net = network(getattr(torch, arguments.dtype))
    steps = []
    for width in arguments.widths:
        for batch in arguments.batches:
            calls = launches_of_step(library, net, width, batch)
            steps.append({"width": width, "batch": batch, "calls": calls})
    print(json.dumps({"multiprocessors": MULTIPROCESSORS, "steps": steps}))


if __name__ == "__main__":
    main()
