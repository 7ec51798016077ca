"""Device, arithmetic and clock of a measurement, its network and widths, and the roof."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ddsm_ext.bench.device import Device, device_of
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.models.unet import UNetConfig
from ddsm_ext.settings import Refusal, is_int

# The network of the published figures: groups and concats as in the reference code, so that slicing
# with PyTorch computes the same function and outputs can be compared; its time table is frozen.
REFERENCE_CIFAR10 = UNetConfig(
    image_size=32, norm="fixed_groups", concat_slicing="prefix", time_table_rows=1000
)
WIDTHS = (1.0, 0.75, 0.5, 0.25)
Config = TypeVar("Config", bound=NetworkConfig)
# Name of the arithmetic -> type of activations and weights. "tf32" allows the tensor cores to round
# the factors of float32 products to 10 bits, "float32" does not.
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
# Largest relative difference between candidates: Winograd arithmetic in float32, 10 bits in tf32,
# 8 bits in bfloat16.
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 4e-2}


class Setting:
    """What a measurement runs on.

    One CPU thread is timed in the thread's CPU time, more in wall time, a GPU in wall time between
    synchronisations.

    Args:
        dtype: one of DTYPES.
        threads: of torch on the CPU.
        device: "cpu", "cuda", or a `Device` of one's own.

    Raises:
        ValueError: a name that does not exist, threads below 1, or a GPU that is not there.
    """

    def __init__(
        self, dtype: str = "float32", threads: int = 1, device: str | Device = "cpu"
    ) -> None:
        if dtype not in DTYPES:
            raise Refusal(f"bench: dtype is {dtype!r}; need one of {', '.join(DTYPES)}")
        self.device: Device = device_of(device) if isinstance(device, str) else device
        if dtype == "tf32" and not self.device.on_gpu:
            raise Refusal("bench: dtype is 'tf32' on the CPU; need float32 or bfloat16 there")
        if not is_int(threads, 1):
            raise Refusal(f"bench: threads is {threads!r}; need an int >= 1")
        self.dtype, self.threads = dtype, threads

    @property
    def on_gpu(self) -> bool:
        """True on a GPU."""
        return self.device.on_gpu

    @property
    def place(self) -> str:
        """torch's name of the device, for tensors."""
        return self.device.place

    @property
    def kind(self) -> torch.dtype:
        """Type of activations and weights."""
        return DTYPES[self.dtype]

    @property
    def tolerance(self) -> float:
        """Largest relative difference between candidates."""
        return TOLERANCE[self.dtype]

    @property
    def timing(self) -> dict[str, Any]:
        """The arguments of `interleaved` that suit the device."""
        return self.device.timing(self.threads)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run on so many threads and in this arithmetic, and set both back."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with self.device.arithmetic(self.dtype == "tf32"):
                yield
        finally:
            torch.set_num_threads(before)

    def conditions(self, batch: int) -> dict[str, Any]:
        """Return the conditions of a measurement as JSON values."""
        chosen = {"batch": batch, "dtype": self.dtype, "threads": self.threads}
        return chosen | self.device.about(self.threads)

    def measure_roof(self) -> dict[str, Any]:
        """Return the device's `measure_roof` in this arithmetic, which is active already."""
        return self.device.measure_roof(self.dtype, self.kind, self.timing)


CPU = Setting()


def config_at(config: Config, width: float) -> Config:
    """Return `config`, or its twin with norms of fixed channels a group where `width` needs one.

    The reference code's 32 fixed groups divide the channels of its four widths only; the twin has
    the same layers and shapes and takes any width.

    Raises:
        TypeError, ValueError: the width is not in (0, 1].
    """
    if isinstance(config, UNetConfig) and not config.runs_at(width):
        config = replace(config, norm="channels_per_group")
    config.check_width(width)
    return config


def check_batch(batch: int) -> None:
    """Raise ValueError where a batch is no positive int."""
    if not is_int(batch, 1):
        raise Refusal(f"bench: batch is {batch!r}; need an int >= 1")


def roof_ms(macs: float, roof: dict[str, Any], moved_bytes: float = 0.0) -> float:
    """Milliseconds that so many multiply-accumulates and bytes take at the roof, the longer one."""
    transfer_s = moved_bytes / roof["bytes_per_s"] if "bytes_per_s" in roof else 0.0
    return 1000 * max(macs / roof["macs_per_s"], transfer_s)
