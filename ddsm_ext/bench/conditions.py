"""Device, arithmetic and clock of a measurement, and what every measured time depends on."""

from __future__ import annotations

import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch

from ddsm_ext import _library
from ddsm_ext.bench.timing import clock_of
from ddsm_ext.settings import Refusal, is_int

# Name of the arithmetic -> type of activations and weights. "tf32" allows the tensor cores to round
# the factors of float32 products to 10 bits, "float32" does not.
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
# Largest relative difference between candidates: Winograd arithmetic in float32, 10 bits in tf32,
# 8 bits in bfloat16.
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 4e-2}


@dataclass(frozen=True)
class Setting:
    """What a measurement runs on: `dtype` of DTYPES, torch threads, `device` "cpu" or "cuda".

    One CPU thread is timed in the thread's CPU time, more in wall time, a GPU in wall time between
    synchronisations.

    Raises:
        ValueError: a name that does not exist, threads below 1, or a GPU that is not there.
    """

    dtype: str = "float32"
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise Refusal(f"bench: dtype is {self.dtype!r}; need one of {', '.join(DTYPES)}")
        if self.device not in ("cpu", "cuda"):
            raise Refusal(f"bench: device is {self.device!r}; need cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise Refusal("bench: device is 'cuda' and torch finds no GPU; need one, or cpu")
        if self.dtype == "tf32" and not self.on_gpu:
            raise Refusal("bench: dtype is 'tf32' on the CPU; need float32 or bfloat16 there")
        if not is_int(self.threads, 1):
            raise Refusal(f"bench: threads is {self.threads!r}; need an int >= 1")

    @property
    def on_gpu(self) -> bool:
        """True on a GPU."""
        return self.device == "cuda"

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
        if self.on_gpu:  # a sample waits for the GPU once, which must not count
            return {"clock": _synchronised_s, "min_sample_ms": 20.0, "warmup_rounds": 2}
        return {"clock": clock_of(self.threads)[0]}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run on so many threads and in this arithmetic, and set both back."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with _gpu_arithmetic(self.dtype == "tf32") if self.on_gpu else nullcontext():
                yield
        finally:
            torch.set_num_threads(before)

    def conditions(self, batch: int) -> dict[str, Any]:
        """Return the conditions of a measurement as JSON values."""
        gpu_clock = "wall time between synchronisations"
        about = {
            "batch": batch,
            "dtype": self.dtype,
            "threads": self.threads,
            "clock": gpu_clock if self.on_gpu else clock_of(self.threads)[1],
            "device": self.device,
            "torch": torch.__version__,
        }
        if self.on_gpu:
            return about | gpu_conditions()
        isa = torch.backends.cpu.get_cpu_capability().lower()
        return about | {"torch_isa": isa, "isa": _library.native.active_isa()}


CPU = Setting()


def _synchronised_s() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def _gpu_arithmetic(tf32: bool) -> Iterator[None]:
    """Allow tf32 or not, let cuDNN time its algorithms, and set both back."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def set_all(precision: str, convolutions: bool, products: bool, benchmark: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the older two switches, which Inductor still reads
            # In this order: the older switches refuse to be read beside a newer one set since.
            cudnn.fp32_precision = precision
            cudnn.allow_tf32, matmul.allow_tf32 = convolutions, products
            cudnn.benchmark = benchmark

    before = (cudnn.fp32_precision, cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark)
    set_all("tf32" if tf32 else "ieee", tf32, tf32, True)
    try:
        yield
    finally:
        set_all(*before)


def gpu_conditions() -> dict[str, Any]:
    """Return the GPU and the versions of what runs on it as JSON values."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_bytes": properties.total_memory,
        "driver": _driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_benchmark": True,
    }


def _driver_version() -> str | None:
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.partition("\n")[0].strip() or None
    return None


def check_batch(batch: int) -> None:
    """Raise ValueError where a batch is no positive int."""
    if not is_int(batch, 1):
        raise Refusal(f"bench: batch is {batch!r}; need an int >= 1")
