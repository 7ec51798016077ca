"""Device, arithmetic and clock of a measurement; the GPU's graphs, peak memory, and the roof."""

from __future__ import annotations

import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ddsm_ext import _library
from ddsm_ext.bench.timing import Key, Timing, clock_of, interleaved
from ddsm_ext.runtime.cuda import GraphPool
from ddsm_ext.settings import Refusal, is_int

# Name of the arithmetic -> type of activations and weights. "tf32" allows the tensor cores to round
# the factors of float32 products to 10 bits, "float32" does not.
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
# Largest relative difference between candidates: Winograd arithmetic in float32, 10 bits in tf32,
# 8 bits in bfloat16.
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 4e-2}
_SIZE = 1024  # three operands of 4 MB: large enough for the peak, small enough for a second
_GPU_SIZE = 8192  # 1.1 T FLOPs: 1.4 ms on an H100 in bfloat16
_GPU_COPY_BYTES = 2**32  # read and written; 80 times an H100's L2 cache
# These have no product in bfloat16: torch.mm in it takes seconds and could not beat float32.
_WITHOUT_BF16 = ("DEFAULT", "AVX2")
CALLS_A_GRAPH = 20  # a replay costs microseconds itself


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


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a CUDA graph that makes CALLS_A_GRAPH calls in a row.

    Args:
        call: work on the current GPU that allocates from torch and waits for nothing.
    """

    def repeat() -> None:
        for _ in range(CALLS_A_GRAPH):
            call()

    return GraphPool(torch.device("cuda", torch.cuda.current_device())).capture(repeat)


def interleaved_graphs(
    calls: Mapping[Key, Callable[[], object]], **options: Any
) -> dict[Key, Timing]:
    """`interleaved` with every call captured; returns the times of single calls."""
    replays = {name: captured(call) for name, call in calls.items()}
    return {
        name: Timing(tuple(ms / CALLS_A_GRAPH for ms in timing.rounds_ms))
        for name, timing in interleaved(replays, **options).items()
    }


def peak_bytes(calls: Mapping[Key, Callable[[], object]], *, device: str = "cpu") -> dict[Key, int]:
    """Return the most bytes that each call holds at once beyond what was held before it.

    The profiler sees every block of PyTorch's CPU allocator: also the copy of a sliced weight that
    an op makes inside, which no hook on tensors sees. On a GPU the allocator keeps count itself;
    what a CUDA graph has held since its capture is not in it (`held_gpu_bytes` is).

    Args:
        calls: name -> call; one run of each is recorded, so warm them up first.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        return {key: _gpu_peak(call) for key, call in calls.items()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for number, call in enumerate(calls.values()):
            with record_function(f"peak_bytes.{number}"):
                call()
    assert recorded.profiler is not None
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    blocks = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    spans = {e.name(): (e.start_ns(), e.end_ns()) for e in events}
    return {
        key: max(accumulate((size for at, size in blocks if start <= at <= end), initial=0))
        for number, key in enumerate(calls)
        for start, end in [spans[f"peak_bytes.{number}"]]
    }


def _gpu_peak(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def held_gpu_bytes() -> int:
    """Return what torch holds of the GPU's memory now, graphs' pools included, free blocks not."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def measure_roof(setting: Setting) -> dict[str, Any]:
    """Return MACs a second of the fastest torch.mm and, on a GPU, bytes a second of a large copy.

    On the CPU float32 counts for every dtype: without products in bfloat16 it computes those in
    float32.

    Args:
        setting: what the work that is compared with the roof runs on; active already.

    Returns:
        "macs_per_s" and "probe", which says what ran; on a GPU also "bytes_per_s" (read and
        written) and "bytes_probe".
    """
    if setting.on_gpu:
        return _gpu_roof(setting)
    skipped = torch.backends.cpu.get_cpu_capability() in _WITHOUT_BF16
    dtypes = {torch.float32} if skipped else {torch.float32, setting.kind}
    factors = {kind: torch.ones(_SIZE, _SIZE, dtype=kind) for kind in dtypes}
    times = interleaved(
        {kind: partial(torch.mm, a, a) for kind, a in factors.items()}, rounds=9, **setting.timing
    )
    fastest = min(times, key=lambda kind: times[kind].min_ms)
    name = str(fastest).removeprefix("torch.")
    return {
        "macs_per_s": _SIZE**3 / (times[fastest].min_ms / 1000),
        "probe": f"torch.mm of {_SIZE} x {_SIZE} {name}",
    }


def _gpu_roof(setting: Setting) -> dict[str, Any]:
    # Random values: zeros and ones let the GPU draw less power and clock higher.
    a = torch.randn(_GPU_SIZE, _GPU_SIZE, device=setting.device).to(setting.kind)
    source = torch.randn(_GPU_COPY_BYTES // 8, device=setting.device)
    target = torch.empty_like(source)
    calls = {"mm": partial(torch.mm, a, a), "copy": partial(target.copy_, source)}
    times = interleaved(calls, rounds=9, **setting.timing)
    return {
        "macs_per_s": _GPU_SIZE**3 / (times["mm"].min_ms / 1000),
        "probe": f"torch.mm of {_GPU_SIZE} x {_GPU_SIZE} {setting.dtype}",
        "bytes_per_s": _GPU_COPY_BYTES / (times["copy"].min_ms / 1000),
        "bytes_probe": f"copy of {_GPU_COPY_BYTES // 2**21} MiB",
    }


def roof_ms(macs: float, roof: dict[str, Any], moved_bytes: float = 0.0) -> float:
    """Milliseconds that so many multiply-accumulates and bytes take at the roof, the longer one."""
    transfer_s = moved_bytes / roof["bytes_per_s"] if "bytes_per_s" in roof else 0.0
    return 1000 * max(macs / roof["macs_per_s"], transfer_s)
