"""Trains a network for all widths, searches a strategy and scores it, within minutes.

What lies in OUT_DIR, and at any moment of the run is of use (8 files at most, but for the fraction
of a second in which new weights replace the old ones; each below 15 MB):
  ema-*.safetensors           averaged weights in bfloat16; `ddsm convert` joins what the index
  ema.safetensors.index.json  names into a run folder, with the settings that the index holds
  results.json                settings, log, sensitivity, front, scores, times, outcome of each step
  strategy.json               the searched strategy, as `ddsm sample --strategy` takes it
  samples.png                 real images, full width, strategy, constant width of equal cost

A second call goes on. With the same WORK folder it resumes exactly: that takes the checkpoint there
(four float32 copies of the weights: 320 MB for cifar10, too much to bring back). With nothing but
the ema files in OUT_DIR it begins a new run with those weights: Adam's moments are gone, so the
learning rate warms up again, and the seed is another one. The other files of OUT_DIR are results
alone. Search and scores begin anew where the weights have changed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from gpu_train import checks, results
from gpu_train.checks import Refusal
from gpu_train.presets import PRESETS, Preset
from gpu_train.steps import Budget, Outcome, run_step

ROOT = Path(__file__).resolve().parents[2]
DDSM = ("-m", "ddsm_ext.cli.main")


def main(words: list[str], presets: Sequence[Preset] = PRESETS) -> int:
    """Run the plan; returns 0 if all went well, 1 if a step failed, 2 if nothing could begin."""
    start_s = time.monotonic()
    signal.signal(signal.SIGTERM, _leave)
    try:
        arguments = parsed(words)
        preset = checks.check_arguments(arguments, presets)
        plan = Plan(arguments, preset, Budget(start_s, arguments.minutes))
        plan.prepare()
    except Refusal as error:
        print(f"gpu_train: {error}", file=sys.stderr)
        return 2
    return plan.run()


def _leave(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message}; see --help")


def parsed(words: list[str]) -> argparse.Namespace:
    """Return the options of a command line, paths made absolute.

    Raises:
        Refusal: an option that does not exist, or whose value cannot be read.
    """
    parser = _Parser(
        prog="gpu_train.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--minutes", type=float, default=7.0, help="for all of it (default: 7)")
    parser.add_argument(
        "--data", type=Path, required=True, help="image archive or folder, a folder a class"
    )
    parser.add_argument(
        "--features", type=Path, required=True, metavar="FILE", help="what `ddsm classifier` wrote"
    )
    presets = "; ".join(f"{preset.name}: {preset.about}" for preset in PRESETS)
    parser.add_argument("--preset", default="cifar10", help=f"{presets} (default: cifar10)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument(
        "--site",
        type=Path,
        metavar="FOLDER",
        help="folder with the built ddsm_ext, e.g. what gpu_suite.sh --prebuild left in its site/ "
        "(default: on a GPU build/gpu_suite/site, built if need be; on a CPU the installed one)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build" / "gpu_train",
        metavar="FOLDER",
        help="checkpoints, decoded images, log (default: build/gpu_train)",
    )
    arguments = parser.parse_args(words)
    for name in ("out", "data", "features", "site", "work"):
        path = getattr(arguments, name)
        setattr(arguments, name, None if path is None else path.resolve())
    return arguments


class Plan:
    """The steps of one call and what they share."""

    def __init__(self, arguments: argparse.Namespace, preset: Preset, budget: Budget) -> None:
        self.arguments, self.preset, self.budget = arguments, preset, budget
        self.out, self.work = arguments.out, arguments.work
        self.site: Path | None = arguments.site
        self.device = ""
        self.about: dict[str, Any] = {}
        self.images_before = 0
        self.results: results.Results | None = None

    @property
    def environment(self) -> dict[str, str]:
        """PYTHONPATH with the package's folder before what was given; the preset's threads."""
        given = os.environ.get("PYTHONPATH", "")
        paths = [str(self.site), given] if self.site is not None else [given]
        threads = self.preset.threads
        limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        return {"PYTHONPATH": os.pathsep.join(path for path in paths if path), **limit}

    def prepare(self) -> None:
        """Find or build the package, check all it needs, and write the run's settings.

        Raises:
            Refusal: something is missing.
        """
        arguments = self.arguments
        first = "torch" if self.site is None else "package"
        self.about = checks.probe(first, arguments.features, self.environment)
        self.device = checks.check_device(arguments.device, self.preset, self.about)
        self.work.mkdir(parents=True, exist_ok=True)
        if self.site is None and self.device == "cuda":
            self.build(ROOT / "build" / "gpu_suite")
        if first == "torch":
            self.about = checks.probe("package", arguments.features, self.environment)
        checks.check_package(self.device, self.about, self.preset)
        if self.site is not None:
            sys.path.insert(0, str(self.site))
        self.out.mkdir(parents=True, exist_ok=True)
        for left in self.out.glob(".*.tmp"):  # of a call that was killed while it wrote
            left.unlink()
        self.settle()

    def build(self, folder: Path) -> None:
        """What the GPU suite does first: take what was brought along if it loads, else build.

        Raises:
            Refusal: it fails.
        """
        self.site = folder / "site"
        path = {"PYTHONPATH": os.pathsep.join([str(self.site), str(ROOT / "benchmarks")])}
        words = ["-m", "gpu_suite.build", str(folder)]
        until_s = self.budget.until("train")
        outcome = run_step("build", words, until_s, log=self.log, environment=path)
        if outcome.status != "ok":
            raise Refusal(f"building ddsm_ext failed ({outcome.reason}); see {self.log}")

    @property
    def log(self) -> Path:
        """File with the output of all commands."""
        return self.work / "log.txt"

    @property
    def root(self) -> Path:
        """Folder of run folders."""
        return self.work / "runs"

    def settle(self) -> None:
        """Write the settings of a new run, or check that those of the present one are these.

        Raises:
            Refusal: they are others.
        """
        from ddsm_ext.io.files import read_json, write_json

        settings = self._settings()
        path = self.work / "settings.json"
        if path.exists():
            kept = read_json(path)
            begun = kept["train"].get("start_from"), kept["train"]["seed"]
            self.images_before = kept.pop("images_before")
            settings["train"] |= {"start_from": begun[0], "seed": begun[1]}
            if kept != settings:
                raise Refusal(
                    f"--work {self.work}: holds a run of other settings; need another folder"
                )
        else:
            settings["train"] |= self._beginning()
            write_json(path, settings | {"images_before": self.images_before})
        write_json(self.work / "config.json", settings)

    def _settings(self) -> dict[str, dict[str, Any]]:
        from ddsm_ext.graph.count import macs
        from ddsm_ext.models.unet import UNetConfig
        from ddsm_ext.run.config import merge, preset_values

        values = merge(preset_values("cifar10"), self.preset.settings)
        model = UNetConfig.from_dict(values["model"])
        share = macs(model, self.preset.equal_width) / macs(model, 1.0)
        paths = (self.arguments.data, self.arguments.features, self.work)
        settings = self.preset.resolved(*paths, share)
        settings["train"] |= {"seed": 0, "start_from": None}
        return settings

    def _beginning(self) -> dict[str, Any]:
        """Seed and first weights of a new run: those that OUT_DIR holds, if it holds any."""
        seen = results.images_seen(self.out)
        if seen is None:
            return {"seed": 0, "start_from": None}
        from ddsm_ext.cli.main import main as ddsm

        index, root = self.out / results.INDEX, self.work / "brought"
        print(f"beginning with the weights of {index}, {seen:,} images", flush=True)
        if ddsm(["convert", str(index), "--root", str(root), "--name", "ema"]) != 0:
            raise Refusal(f"{index} cannot be joined; need the files that it names, or none")
        from ddsm_ext.run.folder import list_runs

        self.images_before = seen
        # the same images in another order
        return {"seed": seen % 2**31, "start_from": str(list_runs(root)[-1])}

    def run(self) -> int:
        """Train, search, score; returns the exit code."""
        name = f"{self.about.get('gpu', 'CPU')}, torch {self.about['torch']}"
        print(f"{name}: {self.preset.name}, {self.arguments.minutes:g} minutes", flush=True)
        call = {"call": sys.argv[1:], "preset": self.preset.name, "device": self.device}
        about = {**call, **self.about, "minutes": self.arguments.minutes}
        self.results = results.Results(self.out, about, self.images_before)
        config = str(self.work / "config.json")
        read = self._step("read images", "train", "-m", "gpu_train.images", config)
        if read.status == "ok":
            words = ("--preset", "cifar10", "--config", config, "--root", str(self.root))
            self._ddsm("train", "train", "train", *words, "--name", "gpu-train")
        if self._has_checkpoint():
            # The sensitivity alone gives a strategy within seconds; the search may better it.
            quick = ("--method", "proxy")
            self._ddsm("search by sensitivity", "search", "search", *self._run_words(), *quick)
            self._ddsm("search", "search", "search", *self._run_words())
            self._score()
        return self._end()

    def _end(self) -> int:
        assert self.results is not None
        outcomes = self.results.outcomes
        for o in outcomes:
            print(f"{o.name:<24} {o.status:<8} {o.seconds:6.1f} s  {o.reason}".rstrip())
        print(self.out)
        if not self._has_checkpoint():
            print("gpu_train: nothing was trained; need more --minutes", file=sys.stderr)
            return 1
        return 1 if any(o.status == "failed" for o in outcomes) else 0

    def _run(self) -> Path | None:
        from ddsm_ext.run.folder import list_runs

        return next(iter(list_runs(self.root)), None)

    def _run_words(self) -> tuple[str, ...]:
        run = self._run()
        assert run is not None
        return ("--run", str(run))

    def _has_checkpoint(self) -> bool:
        from ddsm_ext.io.checkpoint import list_checkpoints

        run = self._run()
        return run is not None and bool(list_checkpoints(run))

    def _publish(self, *, results_too: bool) -> None:
        run = self._run()
        assert self.results is not None
        if run is not None:
            self.results.publish_weights(run)
            if results_too:
                self.results.write(run)

    def _ddsm(self, name: str, until: str, command: str, *words: str) -> Outcome:
        return self._step(name, until, *DDSM, command, *words, "--device", self.device)

    def _step(self, name: str, until: str, *words: str) -> Outcome:
        """Run one command until the budget's end of `until`; results follow at once."""
        assert self.results is not None
        outcome = run_step(
            name,
            words,
            self.budget.until(until),
            log=self.log,
            environment=self.environment,
            on_tick=partial(self._publish, results_too=False),
        )
        self.results.outcomes.append(outcome)
        self._publish(results_too=True)
        return outcome

    def _score(self) -> None:
        """Score the samplers on one range of seeds after the other, while time is left."""
        run = self._run()
        assert run is not None
        images = self.preset.settings["eval"]["images"]
        strategy = run / "search" / "strategy.json"
        samplers = ["1", *([str(strategy)] if strategy.exists() else [])]
        samplers.append(f"{self.preset.equal_width:g}")
        words = [word for sampler in samplers for word in ("--strategy", sampler)]
        for number in range(self.preset.ranges):
            seeds = f"{number * images}-{(number + 1) * images - 1}"
            outcome = self._ddsm(
                f"scores of seeds {seeds}", "scores", "eval", *self._run_words(), *words,
                "--seeds", seeds,
            )  # fmt: skip
            if time.monotonic() + outcome.seconds > self.budget.until("scores"):
                break


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
