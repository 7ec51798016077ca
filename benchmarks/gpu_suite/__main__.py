"""The command line of the suite."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from gpu_suite import archive
from gpu_suite.running import Place, Run, table
from gpu_suite.stages import STAGES, Stage, choose, second_run

ROOT = Path(__file__).resolve().parents[2]
SECONDS, SECOND_RUN_SECONDS = 555.0, 195.0
# In a process of its own, so that the suite itself holds none of the GPU's memory. The tables
# of the comparisons are tabulate's.
_QUERY = """
import json, os, tabulate, torch
about = {"torch": torch.__version__, "cuda": torch.version.cuda}
if torch.cuda.is_available():
    properties = torch.cuda.get_device_properties(0)
    about |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
elif os.environ.get("DDSM_TEST_DEVICE") == "cpu":
    about |= {"gpu": "the CPU, as DDSM_TEST_DEVICE says", "capability": "0.0"}
print(json.dumps(about))
"""


def query_gpu() -> dict[str, Any]:
    """Return torch's version and its first GPU.

    Raises:
        ValueError: no torch, or no GPU.
    """
    done = subprocess.run([sys.executable, "-c", _QUERY], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"gpu_suite: {reason}; need torch with CUDA, and tabulate")
    about: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "gpu" not in about:
        raise ValueError(
            f"gpu_suite: torch {about['torch']} finds no GPU; need a machine with an NVIDIA GPU "
            "and a torch built with CUDA"
        )
    return about


def main(
    words: list[str],
    *,
    stages: Sequence[Stage] = STAGES,
    query: Callable[[], dict[str, Any]] = query_gpu,
) -> int:
    """Run the suite; returns 0 if no stage failed, 1 if one did, 2 if nothing could begin.

    Args:
        words: of the command line.
        stages: of the suite.
        query: tells torch's version and its GPU.
    """
    start_s = time.monotonic()
    arguments = _arguments(words)
    if arguments.list:
        _list(stages)
        return 0
    _find_tools()
    build = (arguments.prebuild or arguments.build or ROOT / "build" / "gpu_suite").resolve()
    try:
        if arguments.prebuild is not None:
            return _prebuild(build)
        earlier = None if arguments.after is None else archive.read_summary(arguments.after)
        chosen, seconds = _chosen(arguments, earlier, stages)
        gpu = query()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _stop)
    about = {**gpu, "started": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds}
    print(f"{gpu['gpu']}, torch {gpu['torch']}, CUDA {gpu['cuda']}: "
          f"{len(chosen)} stages in {seconds:g} s", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="gpu-suite-", ignore_cleanup_errors=True) as scratch:
        place = Place(ROOT, build, Path(scratch), sys.executable)
        left_s = seconds - (time.monotonic() - start_s)
        off = _off_from_the_start(gpu, earlier, chosen)
        run = Run(chosen, place, left_s, sm90a_off=off, record=partial(_record, out, about))
        outcomes = run.all()
        _record(out, about, run)
    print(f"\n{table(outcomes)}\n{out / archive.ARCHIVE}")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_suite.sh")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT_DIR")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="stages or groups; default: all")
    parser.add_argument("--seconds", type=float, help=f"for all of them (default: {SECONDS:g})")
    parser.add_argument("--build", type=Path, help="build folder (default: build/gpu_suite)")
    parser.add_argument(
        "--prebuild",
        type=Path,
        metavar="FOLDER",
        help="only build there, for sm_90a, on a machine without a GPU",
    )
    parser.add_argument(
        "--after",
        type=Path,
        metavar="EARLIER",
        help="again what failed in an earlier run, and what matters most",
    )
    parser.add_argument("--list", action="store_true", help="name the stages")
    arguments = parser.parse_intermixed_args(words)
    if arguments.out is None and not arguments.list and arguments.prebuild is None:
        parser.error("OUT_DIR is missing")
    return arguments


def _list(stages: Sequence[Stage]) -> None:
    for stage in stages:
        kept = f"{stage.reserve_s:3.0f} of {stage.limit_s:3.0f} s"
        print(f"{stage.name:<17} {stage.group:<9} {kept}  {stage.about}")


def _chosen(
    arguments: argparse.Namespace, earlier: dict[str, Any] | None, stages: Sequence[Stage]
) -> tuple[list[Stage], float]:
    if earlier is None:
        return choose(arguments.stages, stages), arguments.seconds or SECONDS
    seconds = arguments.seconds or SECOND_RUN_SECONDS
    if arguments.stages:
        return choose(arguments.stages, stages), seconds
    return second_run(earlier["stages"], seconds, stages), seconds


def _off_from_the_start(
    gpu: dict[str, Any], earlier: dict[str, Any] | None, stages: list[Stage]
) -> str:
    """Why the sm_90a path is off: here, or since an earlier run that nothing now proves again."""
    if os.environ.get("DDSM_SM90A") == "0":
        return "DDSM_SM90A is 0"
    if gpu["capability"] != "9.0":
        return f"the GPU is of compute capability {gpu['capability']}"
    if earlier is None or any(stage.proves_sm90a for stage in stages):
        return ""
    reason: str = earlier.get("sm90a_off", "")
    return reason


def _prebuild(folder: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "gpu_suite.build", "--prebuild", str(folder)]
    return subprocess.run(command, env=environment).returncode


def _record(out: Path, about: dict[str, Any], run: Run) -> None:
    state = {**about, "sm90a_off": run.sm90a_off}
    archive.write_state(out, run.place.scratch, state, run.outcomes)


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # so that what runs is ended


def _find_tools() -> None:
    """Put this Python's programs (CMake, Ninja) and the CUDA toolkit's on PATH."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = [str(Path(sys.executable).parent), os.environ["PATH"], f"{home}/bin"]
    os.environ["PATH"] = os.pathsep.join(places)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
