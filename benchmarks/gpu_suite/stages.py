"""What the suite does, the most telling first, and the seconds kept for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TESTS = "python_tests/cuda_kernels/gpu"
WIDTHS = ("1", "0.5", "0.25", "0.75")  # in the order in which they are compiled


@dataclass(frozen=True)
class Stage:
    """A command with its share of the time.

    `command` starts with a script or module of Python, run in the repository with the built package
    on the path; `{out}` in it becomes the output folder, `{minutes}` the minutes that the stage
    has. `reserve_s` are kept for the stage while earlier ones run; `tool` is a program that it
    needs; `needs` is the stage without whose success it means nothing.
    """

    name: str
    about: str
    reserve_s: float
    command: tuple[str, ...]
    tool: str | None = None
    needs: str | None = "build"
    environment: tuple[tuple[str, str], ...] = ()


def _tests(name: str, about: str, reserve_s: float, *files: str) -> Stage:
    paths = (f"{TESTS}/{file}" for file in files)
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *paths)
    return Stage(name, about, reserve_s, command)


def _sanitizer(tool: str, reserve_s: float, *options: str) -> Stage:
    # Only our kernels are watched; torch's own would take minutes.
    watched = ("--kernel-name", "kns=ddsm", "--target-processes", "application-only")
    quiet = ("--report-api-errors", "no", "--error-exitcode", "9")
    script = ("{python}", f"{TESTS}/small_calls.py", *options)
    return Stage(
        tool,
        f"compute-sanitizer {tool} over every kernel on small shapes",
        reserve_s,
        ("compute-sanitizer", "--tool", tool, *watched, *quiet, *script),
        tool="compute-sanitizer",
        # Each tensor an allocation of its own, whose end the sanitizer knows.
        environment=(("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),),
    )


def _steps(name: str, about: str, reserve_s: float, dtype: str, *options: str) -> Stage:
    return _bench(
        name, about, reserve_s, "--mode", "inference", "--dtype", dtype, "--rounds", "7", *options
    )


def _bench(name: str, about: str, reserve_s: float, *options: str) -> Stage:
    script = ("benchmarks/bench_unet_step.py", "--device", "cuda", "--json", "{out}/results")
    limits = ("--limit-minutes", "{minutes}", "--widths", *WIDTHS)
    return Stage(name, about, reserve_s, (*script, *limits, *options))


_EAGER = ("--candidates", "slicing", "dense_cl", "ours", "ours_module")
_ALL = ("--candidates", "slicing", "dense_cl", "compiled", "ours", "ours_module")

STAGES = (
    Stage(
        "build",
        "the libraries for this GPU, and that the CUDA one loads",
        90,
        ("benchmarks/gpu_suite/build.py", "{build}"),
        needs=None,
    ),
    _tests("values", "every layer shape beside float64; gradients", 35, "test_layers.py",
           "../test_gpu.py"),
    _steps("steps", "whole steps in bfloat16, eager", 50, "bfloat16", "--batch", "128", "1", "16",
           "512", *_EAGER),
    _tests("safety", "slices, streams, graphs, repeats", 15, "test_slices.py", "test_streams.py",
           "test_repeats.py"),
    _sanitizer("memcheck", 30),
    _steps("compiled", "the same beside torch.compile", 130, "bfloat16", "--batch", "128", "1",
           "512", "16", *_ALL),
    _bench("training", "the sandwich training step", 20, "--mode", "training", "--dtype",
           "bfloat16", "--batch", "128", "--rounds", "7"),
    _bench("layers", "each layer against the roofs", 40, "--mode", "layers", "--dtype", "bfloat16",
           "--batch", "128", "--rounds", "5"),
    _tests("contracts", "opcheck and torch.compile", 25, "test_contracts.py"),
    _tests("networks", "whole networks, step runner and sampler", 20, "test_networks.py"),
    Stage(
        "filters",
        "whether cuDNN reads a sliced filter without a copy",
        10,
        ("benchmarks/bench_strided_filter.py", "--json", "{out}/strided-filter.json"),
    ),
    _steps("tf32", "whole steps in tf32, eager", 30, "tf32", "--batch", "128", "1", *_EAGER),
    _sanitizer("racecheck", 30),
    _tests("large", "more than 2^31 elements", 10, "test_large.py"),
    Stage(
        "report",
        "tables and plots of the results",
        5,
        ("benchmarks/report.py", "--results", "{out}/results", "--out", "{out}"),
    ),
)  # fmt: skip


def choose(names: Sequence[str]) -> list[Stage]:
    """Return the named stages in the suite's order; all for no names.

    Raises:
        ValueError: a name that is not there.
    """
    known = [stage.name for stage in STAGES]
    for name in names:
        if name not in known:
            raise ValueError(
                f"gpu_suite: stage {name!r} is unknown; need some of {', '.join(known)}"
            )
    return [stage for stage in STAGES if not names or stage.name in names]
