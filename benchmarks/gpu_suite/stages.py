"""What the suite does, the most telling first, with limits and the seconds kept for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpu_suite.tiles import tiles

TESTS = "python_tests/cuda_kernels/gpu"
WIDTHS = ("1", "0.5", "0.25")  # in the order in which they are compiled


@dataclass(frozen=True)
class Stage:
    """A command with its share of the time.

    Attributes:
        name: what it is called and asked for by.
        about: what it shows.
        limit_s: the most that it may take.
        reserve_s: kept for it, or for its whole group, while earlier ones run.
        command: begins with a script or module of Python, run in the repository with the built
            package on the path; `{out}` in it becomes the folder for results, `{build}` the build
            folder, `{python}` the interpreter, `{seconds}` and `{minutes}` the time it has.
        tool: a program that it needs and that `command` names itself; None: Python runs it.
        needs: the stage without whose success it means nothing.
        group: adjacent stages of one group run beside each other.
        proves_sm90a: its failure turns the sm_90a path off for everything after it.
        wants_sm90a: it means nothing where that path is off from the start.
        quiet: it times, so that work in the background stands still meanwhile.
        background: it begins here and goes on beside what follows.
        after: stages in the background that must have ended.
        again: its rank in a second run in which nothing has to be mended; 0: not in it.
        environment: further variables.
    """

    name: str
    about: str
    limit_s: float
    reserve_s: float
    command: tuple[str, ...]
    tool: str | None = None
    needs: str | None = "build"
    group: str = ""
    proves_sm90a: bool = False
    wants_sm90a: bool = False
    quiet: bool = False
    background: bool = False
    after: tuple[str, ...] = ()
    again: int = 0
    environment: tuple[tuple[str, str], ...] = ()


SM80 = (("DDSM_SM90A", "0"),)
APART = (("DDSM_OVERLAP", "0"),)


def _script(name: str, *words: str) -> tuple[str, ...]:
    return ("-m", f"gpu_suite.{name}", *words)


def _family(name: str, about: str, *words: str, **more: object) -> Stage:
    command = (f"{TESTS}/families.py", *(words or (name,)), "--json", f"{{out}}/family-{name}.json")
    stage = Stage(name, about, 25, 36, command, group="families")
    return replace(stage, **more)  # type: ignore[arg-type]


def _families() -> list[Stage]:
    hopper = [tile for tile in tiles() if tile.sm90a]
    return [
        *(
            _family(f"sm90a-forward-{tile.algo}", f"convolutions by the sm_90a tile {tile}",
                    "forward", "--algo", str(tile.algo), proves_sm90a=True, wants_sm90a=True)
            for tile in hopper
        ),
        *(
            _family(f"sm90a-grad-x-{tile.algo}", f"gradients of x by the sm_90a tile {tile}",
                    "grad-x", "--algo", str(tile.algo), proves_sm90a=True, wants_sm90a=True)
            for tile in hopper
            if tile.serves_gradient
        ),
        _family("fused", "convolutions with shift, residual and moments, as in a step",
                proves_sm90a=True),
        _family("fused-sm80", "the same without the sm_90a path", "fused", environment=SM80),
        _family("sm80-forward", "convolutions by every tile of the sm_80 path", "forward"),
        _family("sm80-grad-x", "gradients of x by every tile of the sm_80 path", "grad-x"),
        _family("grad-weight", "gradients of weight and bias"),
        _family("group-norm", "GroupNorm and its gradients"),
        _family("modulated", "norms with scale and shift, halved norms, resampling, labels"),
        _family("activated", "linear layers of blocks, activations and gates, in stores and alone",
                proves_sm90a=True),
        _family("activated-sm80", "the same without the sm_90a path", "activated",
                environment=SM80),
        _family("attention", "attention and its gradients"),
        _family("linear", "linear layers and their gradients"),
    ]  # fmt: skip


def _warm(width: str, batch: int, *, patient: bool = False) -> Stage:
    """Compiles one step; a patient one leaves the processor to the others."""
    name = f"warm-{batch}-{width}"
    about = f"torch.compile at width {width}, batch {batch}, for the cache (in the background)"
    command = _script("warm", "--width", width, "--batch", str(batch))
    stage = Stage(name, about, 240, 0, command, group="warm", background=True)
    if not patient:
        return stage
    return replace(stage, command=("nice", "-n", "10", "{python}", *command), tool="nice")


_WARM = (
    *(_warm(width, 128) for width in WIDTHS),
    _warm("1", 1),
    _warm("0.25", 1, patient=True),
    _warm("1", 512, patient=True),
)


def _without(
    stage: Stage, name: str, what: str, environment: tuple[tuple[str, str], ...], **more: object
) -> Stage:
    """The same stage without something that an environment turns off."""
    name = f"{stage.name}-{name}"
    words = [word.replace(f"{stage.name}.json", f"{name}.json") for word in stage.command]
    return replace(
        stage, name=name, about=f"{stage.about}, {what}", command=tuple(words),
        environment=(*stage.environment, *environment), again=0, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def _sm80(stage: Stage, **more: object) -> Stage:
    return _without(stage, "sm80", "without the sm_90a path", SM80, **more)


def _apart(stage: Stage, **more: object) -> Stage:
    return _without(stage, "apart", "no kernel overlapping the one before it", APART, **more)


def _compare(batch: int, limit_s: float, reserve_s: float, *widths: str, again: int = 0) -> Stage:
    about = f"whole steps beside slicing, dense weights and torch.compile, batch {batch}"
    command = _script("compare", "--batch", str(batch), "--widths", *widths, "--json",
                      "{out}/results", "--seconds", "{seconds}")  # fmt: skip
    warm = tuple(stage.name for stage in _WARM if stage.name.startswith(f"warm-{batch}-"))
    return Stage(f"compare-{batch}", about, limit_s, reserve_s, command, quiet=True, after=warm,
                 again=again)  # fmt: skip


def _tests(name: str, about: str, limit_s: float, reserve_s: float, *files: str) -> Stage:
    paths = (f"{TESTS}/{file}" if file.endswith(".py") else file for file in files)
    command = ("-m", "pytest", "-q", "--maxfail=5", "-p", "no:cacheprovider", *paths)
    group = "" if reserve_s else "tests"  # those at the end, beside each other
    return Stage(name, about, limit_s, reserve_s, command, group=group)


def _sanitizer(tool: str, limit_s: float, reserve_s: float) -> Stage:
    # Only our kernels are watched; torch's own would take minutes.
    watched = ("--kernel-name", "kns=ddsm", "--target-processes", "application-only")
    quiet = ("--report-api-errors", "no", "--error-exitcode", "9")
    script = ("{python}", f"{TESTS}/small_calls.py")
    return Stage(
        tool,
        f"compute-sanitizer {tool} over every kernel on small shapes",
        limit_s,
        reserve_s,
        ("compute-sanitizer", "--tool", tool, *watched, *quiet, *script),
        tool="compute-sanitizer",
        # Each tensor an allocation of its own, whose end the sanitizer knows.
        environment=(("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),),
    )


def _bench(
    name: str,
    about: str,
    limit_s: float,
    reserve_s: float,
    *options: str,
    widths: Sequence[str] = WIDTHS,
) -> Stage:
    script = ("benchmarks/bench_unet_step.py", "--device", "cuda", "--json", "{out}/results")
    limits = ("--limit-minutes", "{minutes}", "--widths", *widths)
    return Stage(name, about, limit_s, reserve_s, (*script, *limits, *options), quiet=True)


_STEP = Stage(
    "step", "whole steps beside float64: eager, captured, replayed, weights changed", 50, 30,
    _script("whole_step", "--json", "{out}/step.json"), again=7,
)  # fmt: skip
_PROFILE = Stage(
    "profile", "microseconds of every kernel of a step", 30, 18,
    _script("kernel_table", "--json", "{out}/profile.json"), quiet=True, again=6,
)  # fmt: skip
_GRAPHS = Stage(
    "graphs", "our captured steps of three families at three widths", 50, 25,
    _script("graph_times", "--json", "{out}/graphs.json"), quiet=True, again=5,
)  # fmt: skip

STAGES: tuple[Stage, ...] = (
    Stage("build", "the libraries load, those brought along or else built here", 180, 10,
          _script("build", "{build}"), needs=None, again=99),
    Stage("roofs", "what the GPU is, and how fast it copies and multiplies", 15, 6,
          _script("roofs", "--json", "{out}/roofs.json"), again=9),
    Stage("atoms", "single instructions beside the emulator, a process each", 25, 10,
          _script("atoms", "{build}", "--json", "{out}/atoms.json"), again=8),
    *_WARM,
    *_families(),
    _STEP,
    _PROFILE,
    _sm80(_PROFILE, reserve_s=0),
    _GRAPHS,
    _sm80(_GRAPHS),
    _apart(_GRAPHS, reserve_s=0),
    Stage("sweep", "every tile and split of the large convolutions; fits tile_choice.h", 60, 40,
          _script("sweep", "--json", "{out}/sweep.json", "--seconds", "{seconds}"), quiet=True,
          again=3),
    _tests("safety", "slices, streams, graphs, repeats", 25, 16, "test_slices.py",
           "test_streams.py", "test_repeats.py"),
    _compare(128, 100, 65, *WIDTHS, again=4),
    _compare(1, 60, 30, "1", "0.25"),
    Stage("counters", "what Nsight Compute counts in three kernels", 60, 30,
          _script("counters", "--json", "{out}/counters.json", "--seconds", "{seconds}"),
          tool=None, quiet=True),
    _bench("training", "the sandwich training step", 45, 25, "--mode", "training", "--dtype",
           "bfloat16", "--batch", "128", "--rounds", "5"),
    _compare(512, 60, 20, "1", "0.25"),
    Stage("filters", "whether cuDNN reads a sliced filter without a copy", 20, 10,
          ("benchmarks/bench_strided_filter.py", "--json", "{out}/strided-filter.json"),
          quiet=True),
    _sanitizer("memcheck", 40, 25),
    _bench("families-step", "steps of ADM, DDPM++ and LDM", 75, 0, "--network", "adm64",
           "ddpmpp", "ldm32", "--mode", "inference", "training", "--dtype", "bfloat16",
           "--batch", "128", "1", "--rounds", "5", "--candidates", "slicing", "dense_cl", "ours"),
    _bench("tf32", "whole steps in tf32, eager", 35, 0, "--mode", "inference", "--dtype", "tf32",
           "--rounds", "5", "--batch", "128", "1", "--candidates", "slicing", "dense_cl", "ours",
           widths=("1", "0.25")),
    # Libraries built beforehand have no convolutions for the CPU to compare with.
    _tests("networks", "whole networks, step runner and sampler", 60, 0, "test_networks.py",
           "../test_gpu.py", "-k", "not cpu"),
    _tests("contracts", "opcheck and torch.compile", 60, 0, "test_contracts.py"),
    _tests("layers", "every layer shape beside float64, all gradients", 75, 0, "test_layers.py"),
    replace(_sanitizer("racecheck", 75, 0), group="tests"),
    _apart(_STEP, reserve_s=0),
    Stage("report", "tables and plots of the results", 30, 12,
          ("benchmarks/report.py", "--results", "{out}/results", "--out", "{out}")),
)  # fmt: skip


def choose(names: Sequence[str], stages: Sequence[Stage] = STAGES) -> list[Stage]:
    """Return the stages of these names or groups in the suite's order; all for no names.

    Raises:
        ValueError: a name that is not there.
    """
    known = list(dict.fromkeys([*(s.name for s in stages), *(s.group for s in stages if s.group)]))
    for name in names:
        if name not in known:
            raise ValueError(
                f"gpu_suite: stage {name!r} is unknown; need some of {', '.join(known)}"
            )
    return [stage for stage in stages if not names or {stage.name, stage.group} & set(names)]


def second_run(
    earlier: Sequence[dict[str, object]], budget_s: float, stages: Sequence[Stage] = STAGES
) -> list[Stage]:
    """Return what a second run of so many seconds does: what failed, then what matters most.

    Of the families all run again if one failed, as one that is mended may break another.

    Args:
        earlier: the stages of an earlier summary.
        budget_s: what the reserves of all chosen stages must fit into.
        stages: of the suite.
    """
    failed = {outcome["name"] for outcome in earlier if outcome["status"] == "failed"}
    broken = {stage.group for stage in stages if stage.name in failed and stage.group}

    def rank(stage: Stage) -> tuple[int, int]:
        wanted = stage.name in failed or stage.group in broken
        return (1 if wanted and not stage.background else 0, stage.again)

    chosen: set[str] = set()
    spent_s, groups = 0.0, set()
    for stage in sorted(stages, key=lambda s: (s.name != "build", *(-r for r in rank(s)))):
        if stage.background or not any(rank(stage)):
            continue
        cost_s = 0.0 if stage.group and stage.group in groups else max(stage.reserve_s, 15.0)
        if stage.name == "build":
            cost_s = stage.reserve_s
        if spent_s + cost_s <= budget_s:
            spent_s += cost_s
            chosen.add(stage.name)
            groups.add(stage.group)
    return [replace(stage, after=()) for stage in stages if stage.name in chosen]
