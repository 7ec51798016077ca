"""What the benchmarks ask of a device: its clock, arithmetic, memory, graphs and roof."""

from __future__ import annotations

import subprocess
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from ddsm_ext import _library
from ddsm_ext.bench.timing import Key, Timing, clock_of, interleaved
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.runtime.cuda import GraphPool
from ddsm_ext.runtime.runner import StepRunner
from ddsm_ext.settings import Refusal

Calls = Mapping[Key, Callable[[], object]]
_SIZE = 1024  # three operands of 4 MB: large enough for the peak, small enough for a second
# These have no product in bfloat16: torch.mm in it takes seconds and could not beat float32.
_WITHOUT_BF16 = ("DEFAULT", "AVX2")
CALLS_A_GRAPH = 20  # a replay costs microseconds itself


class Device(ABC):
    """A kind of device; a test may play one by a subclass.

    `place` is where torch makes its tensors, `on_gpu` whether it is measured as a GPU.
    """

    place: str
    on_gpu: bool

    @abstractmethod
    def timing(self, threads: int) -> dict[str, Any]:
        """Return the arguments of `interleaved` that suit the device."""

    def arithmetic(self, tf32: bool) -> AbstractContextManager[None]:
        """Allow tf32 or not, and set it back; without a GPU there is but one arithmetic."""
        return nullcontext()

    @abstractmethod
    def about(self, threads: int = 1) -> dict[str, Any]:
        """Return the clock, the device and what runs on it as JSON values."""

    def runner(self, net: SlimmableNetwork) -> StepRunner:
        """Return what runs a network's steps here."""
        return StepRunner(net)

    @abstractmethod
    def compile(self, network: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
        """Return a step by torch.compile, ready to run.

        Raises:
            RuntimeError: it does not compile.
        """

    def time_kernels(self, calls: Calls[Key], **options: Any) -> dict[Key, Timing]:
        """`interleaved` for calls of single kernels; returns the times of single calls."""
        return interleaved(calls, **options)

    @abstractmethod
    def peak_bytes(self, calls: Calls[Key]) -> dict[Key, int]:
        """Return the most bytes that each call holds at once beyond what was held before it.

        Args:
            calls: name -> call; one run of each is recorded, so warm them up first.
        """

    def held_bytes(self) -> int:
        """Return what torch holds of a GPU's memory now, graphs' pools included, free blocks not.

        0 on the CPU, whose allocator does not tell.
        """
        return 0

    @abstractmethod
    def measure_roof(self, name: str, kind: torch.dtype, timing: dict[str, Any]) -> dict[str, Any]:
        """Return MACs a second of the fastest torch.mm and, on a GPU, of bytes in a large copy.

        Args:
            name: of the arithmetic, which is active.
            kind: type of activations and weights.
            timing: arguments of `interleaved`.

        Returns:
            "macs_per_s" and "probe", which says what ran; on a GPU also "bytes_per_s" (read and
            written) and "bytes_probe".
        """


class Cpu(Device):
    """The CPU. One thread is timed in its CPU time, more in wall time."""

    place = "cpu"
    on_gpu = False

    def timing(self, threads: int) -> dict[str, Any]:
        return {"clock": clock_of(threads)[0]}

    def about(self, threads: int = 1) -> dict[str, Any]:
        return {
            "clock": clock_of(threads)[1],
            "device": "cpu",
            "torch": torch.__version__,
            "torch_isa": torch.backends.cpu.get_cpu_capability().lower(),
            "isa": _library.native.active_isa(),
        }

    def compile(self, network: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
        return _compiled(network, inputs, 1, options={"freezing": True})  # of the weights

    def peak_bytes(self, calls: Calls[Key]) -> dict[Key, int]:
        # The profiler sees every block of PyTorch's CPU allocator: also the copy of a sliced weight
        # that an op makes inside, which no hook on tensors sees.
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

    def measure_roof(self, name: str, kind: torch.dtype, timing: dict[str, Any]) -> dict[str, Any]:
        # float32 counts for every dtype: without products in bfloat16 the CPU computes those in it.
        skipped = torch.backends.cpu.get_cpu_capability() in _WITHOUT_BF16
        dtypes = {torch.float32} if skipped else {torch.float32, kind}
        factors = {dtype: torch.ones(_SIZE, _SIZE, dtype=dtype, device="cpu") for dtype in dtypes}
        calls = {dtype: partial(torch.mm, a, a) for dtype, a in factors.items()}
        times = interleaved(calls, rounds=9, **timing)
        fastest = min(times, key=lambda dtype: times[dtype].min_ms)
        probe = f"torch.mm of {_SIZE} x {_SIZE} {str(fastest).removeprefix('torch.')}"
        return {"macs_per_s": _SIZE**3 / (times[fastest].min_ms / 1000), "probe": probe}


class Gpu(Device):
    """The current GPU, in wall time between synchronisations."""

    place = "cuda"
    on_gpu = True
    roof_size = 8192  # of a matrix: 1.1 T FLOPs, 1.4 ms on an H100 in bfloat16
    copy_bytes = 2**32  # read and written; 80 times an H100's L2 cache

    def synchronize(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize()

    def properties(self) -> Any:
        """Return torch's description of the GPU."""
        return torch.cuda.get_device_properties(torch.cuda.current_device())

    def driver_version(self) -> str | None:
        """Return the driver's version as nvidia-smi tells it; None: it does not."""
        command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            return done.stdout.partition("\n")[0].strip() or None
        return None

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        """Return the replay of a CUDA graph that makes CALLS_A_GRAPH calls in a row.

        Args:
            call: work on the GPU that allocates from torch and waits for nothing.
        """

        def repeat() -> None:
            for _ in range(CALLS_A_GRAPH):
                call()

        return GraphPool(torch.device("cuda", torch.cuda.current_device())).capture(repeat)

    def peak_of(self, call: Callable[[], object]) -> int:
        """Return the most bytes that torch's allocator counts during a call beyond those before."""
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def timing(self, threads: int) -> dict[str, Any]:
        def clock() -> float:
            self.synchronize()
            return time.perf_counter()

        # A sample waits for the GPU once, which must not count.
        return {"clock": clock, "min_sample_ms": 20.0, "warmup_rounds": 2}

    @contextmanager
    def arithmetic(self, tf32: bool) -> Iterator[None]:
        """Allow tf32 or not, let cuDNN time its algorithms, and set both back."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

        def set_all(precision: str, convolutions: bool, products: bool, benchmark: bool) -> None:
            with warnings.catch_warnings():
                # Of the older two switches, which Inductor still reads.
                warnings.simplefilter("ignore")
                # In this order: the older ones refuse to be read beside a newer one set since.
                cudnn.fp32_precision = precision
                cudnn.allow_tf32, matmul.allow_tf32 = convolutions, products
                cudnn.benchmark = benchmark

        before = (cudnn.fp32_precision, cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark)
        set_all("tf32" if tf32 else "ieee", tf32, tf32, True)
        try:
            yield
        finally:
            set_all(*before)

    def about(self, threads: int = 1) -> dict[str, Any]:
        properties = self.properties()
        return {
            "clock": "wall time between synchronisations",
            "device": "cuda",
            "torch": torch.__version__,
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "gpu_bytes": properties.total_memory,
            "driver": self.driver_version(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cudnn_benchmark": True,
        }

    def compile(self, network: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
        # With CUDA graphs: compiles, records a graph, replays it.
        return _compiled(network, inputs, 3, mode="max-autotune")

    def time_kernels(self, calls: Calls[Key], **options: Any) -> dict[Key, Timing]:
        """`interleaved` with every call captured; returns the times of single calls."""
        replays = {name: self.captured(call) for name, call in calls.items()}
        return {
            name: Timing(tuple(ms / CALLS_A_GRAPH for ms in timing.rounds_ms))
            for name, timing in interleaved(replays, **options).items()
        }

    def peak_bytes(self, calls: Calls[Key]) -> dict[Key, int]:
        # What a CUDA graph has held since its capture is in `held_bytes` alone.
        return {key: self.peak_of(call) for key, call in calls.items()}

    def held_bytes(self) -> int:
        self.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    def measure_roof(self, name: str, kind: torch.dtype, timing: dict[str, Any]) -> dict[str, Any]:
        size, moved = self.roof_size, self.copy_bytes
        # Random values: zeros and ones let the GPU draw less power and clock higher.
        a = torch.randn(size, size, dtype=torch.float32, device=self.place).to(kind)
        source = torch.randn(moved // 8, dtype=torch.float32, device=self.place)
        target = torch.empty_like(source)
        calls = {"mm": partial(torch.mm, a, a), "copy": partial(target.copy_, source)}
        times = interleaved(calls, rounds=9, **timing)
        return {
            "macs_per_s": size**3 / (times["mm"].min_ms / 1000),
            "probe": f"torch.mm of {size} x {size} {name}",
            "bytes_per_s": moved / (times["copy"].min_ms / 1000),
            "bytes_probe": f"copy of {moved // 2**21} MiB",
        }


def _compiled(
    network: nn.Module, inputs: Mapping[str, Tensor], runs: int, **options: Any
) -> Callable[[], Tensor]:
    import torch._dynamo.config

    compiled = torch.compile(network, fullgraph=True, dynamic=False, **options)

    def call() -> Tensor:
        # On a GPU the output lies in a graph's memory, which the next step may use again.
        torch.compiler.cudagraph_mark_step_begin()
        output: Tensor = compiled(**inputs)
        return output

    # All widths share the code of one forward, which is compiled at most 8 times by default.
    with torch._dynamo.config.patch(recompile_limit=256):
        for _ in range(runs):
            call()
    return call


def device_of(name: str) -> Device:
    """Return the device of a name, "cpu" or "cuda".

    Raises:
        ValueError: another name, or a GPU that is not there.
    """
    if name not in ("cpu", "cuda"):
        raise Refusal(f"bench: device is {name!r}; need cpu or cuda")
    if name == "cpu":
        return Cpu()
    if not torch.cuda.is_available():
        raise Refusal("bench: device is 'cuda' and torch finds no GPU; need one, or cpu")
    return Gpu()
