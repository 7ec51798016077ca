"""Everything that can be wrong is found before anything is trained, and said in one sentence."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_train.presets import Preset

LEAST_MINUTES, MOST_MINUTES = 0.5, 24 * 60
# What the commands of the plan import, in a process that sees what they will see. Packages of other
# people come first: whether they are there is known before ddsm_ext is built.
_PROBE = """
import json, sys
about = {}
try:
    import torch
    about = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        about |= {"gpu": torch.cuda.get_device_name(0)}
        about |= {"capability": list(torch.cuda.get_device_capability(0))}
    import numpy, PIL.Image, safetensors.torch, tabulate, tqdm
    import pymoo.algorithms.moo.nsga2, pymoo.indicators.hv
    if sys.argv[1] == "package":
        import ddsm_ext.training.loop, ddsm_ext.data.dataset, ddsm_ext.search.nsga2
        import ddsm_ext.cli.evaluate, ddsm_ext.io.weights
        from ddsm_ext import __version__, _library
        from ddsm_ext.eval.classifier import load_classifier
        about |= {"ddsm_ext": __version__, "cuda_missing": _library.cuda_missing_reason}
        config = load_classifier(sys.argv[2])[0].config
        about |= {"features_shape": [config.image_channels, config.image_size]}
except ModuleNotFoundError as error:
    about["missing"] = error.name
except Exception as error:
    about["refused"] = " ".join(str(error).split())
print(json.dumps(about))
"""


class Refusal(ValueError):
    """Why nothing begins, in one sentence."""


def check_arguments(arguments: argparse.Namespace, presets: Sequence[Preset]) -> Preset:
    """Check what can be checked without torch, and return the preset that was asked for.

    Raises:
        Refusal: one sentence about the first thing that is wrong.
    """
    if not LEAST_MINUTES <= arguments.minutes <= MOST_MINUTES:
        raise Refusal(
            f"--minutes is {arguments.minutes:g}; need {LEAST_MINUTES:g} to {MOST_MINUTES}"
        )
    preset = next((preset for preset in presets if preset.name == arguments.preset), None)
    if preset is None:
        names = ", ".join(preset.name for preset in presets)
        raise Refusal(f"--preset is {arguments.preset!r}; need one of {names}")
    if not arguments.data.exists():
        raise Refusal(f"--data {arguments.data}: no such file or folder; need labelled images")
    if not arguments.features.is_file():
        raise Refusal(
            f"--features {arguments.features}: no such file; need one of "
            f"`ddsm classifier --data {arguments.data} --out FILE`, made beforehand on a CPU"
        )
    if arguments.site is not None and not (arguments.site / "ddsm_ext").is_dir():
        raise Refusal(f"--site {arguments.site}: holds no ddsm_ext; need a built package's folder")
    for folder in (arguments.out, arguments.work):
        if folder.exists() and not folder.is_dir():
            raise Refusal(f"{folder}: is a file; need a folder")
    return preset


def probe(what: str, features: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Ask a process with `environment` for its versions, its GPU and what it lacks.

    Args:
        what: "torch": what others wrote; "package": ddsm_ext and the features, too.
        features: classifier file.
        environment: variables beside this process's own.

    Returns:
        "torch", "cuda", "gpu" and "capability" where there is one; for "package" also "ddsm_ext",
        "cuda_missing" (why its CUDA library is not there) and "features_shape" [C, H].

    Raises:
        Refusal: a package is missing, or something does not load.
    """
    words = [sys.executable, "-c", _PROBE, what, str(features)]
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Refusal(f"{sys.executable} fails to load torch or ddsm_ext: {last}")
    about = json.loads(done.stdout.splitlines()[-1])
    if (missing := about.get("missing")) is not None:
        raise Refusal(
            f"the Python package {missing} is missing; need it on PYTHONPATH, e.g. from "
            f"`pip install --target FOLDER {missing.partition('.')[0]}` (benchmarks/README.md)"
        )
    if (refused := about.get("refused")) is not None:
        raise Refusal(refused)
    return about


def check_device(device: str, preset: Preset, about: Mapping[str, Any]) -> str:
    """Return "cuda" or "cpu".

    Raises:
        Refusal: no GPU for what needs one.
    """
    if device == "auto":
        device = "cuda" if "gpu" in about else "cpu"
    if device == "cuda" and "gpu" not in about:
        raise Refusal(f"torch {about['torch']} finds no GPU; need one for --device cuda")
    if device == "cpu" and preset.needs_gpu:
        raise Refusal(
            f"torch {about['torch']} finds no GPU; need one for --preset {preset.name}, or try the "
            "plan with --preset tiny"
        )
    return device


def check_package(device: str, about: Mapping[str, Any], preset: Preset) -> None:
    """Refuse a package without the CUDA library, and features of other images.

    Raises:
        Refusal: one of them.
    """
    if device == "cuda" and about["cuda_missing"] is not None:
        raise Refusal(f"ddsm_ext has no CUDA library: {about['cuda_missing']}")
    data = preset.settings["data"]
    wanted = [data["channels"], data["image_size"]]
    if about["features_shape"] != wanted:
        channels, size = about["features_shape"]
        raise Refusal(
            f"--features are of {channels}x{size}x{size} images; need one of "
            f"{wanted[0]}x{wanted[1]}x{wanted[1]}"
        )
