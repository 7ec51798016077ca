"""The command line of the suite."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from gpu_suite.running import Place, run_stages, summary, write_summary
from gpu_suite.stages import STAGES, choose

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own, so that the suite itself holds none of the GPU's memory.
_QUERY = """
import json, torch
found = torch.cuda.is_available()
about = {"torch": torch.__version__, "cuda": torch.version.cuda}
if found:
    properties = torch.cuda.get_device_properties(0)
    about |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
print(json.dumps(about))
"""


def main(words: list[str]) -> int:
    """Run the suite; returns 0 if no stage failed, 1 if one did, 2 if nothing could begin."""
    arguments = _arguments(words)
    if arguments.list:
        print("\n".join(f"{s.name:<10} {s.reserve_s:4.0f} s  {s.about}" for s in STAGES))
        return 0
    try:
        stages = choose(arguments.stages)
        gpu = query_gpu()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    _find_tools()
    place = Place(ROOT, out, (arguments.build or ROOT / "build" / "gpu_suite").resolve(),
                  sys.executable)  # fmt: skip
    about = {**gpu, "started": datetime.now(UTC).isoformat(timespec="seconds"),
             "minutes": arguments.minutes}  # fmt: skip
    record = partial(write_summary, out / "suite.json", about)
    print(f"{gpu['gpu']}, torch {gpu['torch']}, CUDA {gpu['cuda']}: "
          f"{len(stages)} stages in {arguments.minutes:g} minutes", flush=True)  # fmt: skip
    outcomes = run_stages(stages, place, 60 * arguments.minutes, record=record)
    print(f"\n{summary(outcomes)}\n{out}")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_suite.sh")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT_DIR")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="default: all")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages (default: 9)")
    parser.add_argument("--build", type=Path, help="build folder (default: build/gpu_suite)")
    parser.add_argument("--list", action="store_true", help="name the stages")
    arguments = parser.parse_args(words)
    if arguments.out is None and not arguments.list:
        parser.error("OUT_DIR is missing")
    return arguments


def query_gpu() -> dict[str, Any]:
    """Return torch's version and its first GPU.

    Raises:
        ValueError: no torch, or no GPU.
    """
    done = subprocess.run([sys.executable, "-c", _QUERY], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"gpu_suite: torch does not import ({reason}); need one with CUDA")
    about = json.loads(done.stdout.splitlines()[-1])
    if "gpu" not in about:
        raise ValueError(
            f"gpu_suite: torch {about['torch']} finds no GPU; need a machine with an NVIDIA GPU "
            "and a torch built with CUDA"
        )
    return about


def _find_tools() -> None:
    """Put this Python's programs (CMake, Ninja) and the CUDA toolkit's on PATH."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = [str(Path(sys.executable).parent), os.environ["PATH"], f"{home}/bin"]
    os.environ["PATH"] = os.pathsep.join(places)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
