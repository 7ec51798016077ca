"""Numbered run folders: `runs/00000-name` with config.json and env.json, made at once."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ddsm_ext.data.config import CODEC_PLACES
from ddsm_ext.io.digest import sealed, unsealed
from ddsm_ext.io.files import (
    locked,
    one_line,
    parse_json,
    read_json,
    sync_folder,
    to_json,
    write_json,
)
from ddsm_ext.io.lock import RunLock
from ddsm_ext.machine import machine_info
from ddsm_ext.report.records import Environment
from ddsm_ext.run.config import RunConfig
from ddsm_ext.settings import Refusal, Settings, completed, plain

# Settings of runs whose search had stages. Some names are in use again for other numbers: a
# population of cheap scores then would be days of samples now.
_RETIRED: dict[str, tuple[str, ...]] = {
    "search": ("stages", "segments", "population", "generations", "refine_generations",
               "refine_population", "full_per_generation", "full_final", "seed_budgets"),
    "eval": ("search_images", "sensitivity_images"),
}  # fmt: skip
CONFIG_FILE = "config.json"
_NEW = re.compile(r"\.new-\d+-run")  # until it has its number
_RUN = re.compile(r"(\d{5,})-([A-Za-z0-9][A-Za-z0-9._-]*)")


def run_name(source: str | Path) -> str:
    """Return a name for a run of these images or weights, of characters that it may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).stem).strip("._-")[:60] or "run"


def list_runs(root: str | Path) -> list[Path]:
    """Run folders under `root` by rising number; none when `root` is missing."""
    root = Path(root)
    if not root.is_dir():
        return []
    runs = [(int(m[1]), p) for p in root.iterdir() if (m := _RUN.fullmatch(p.name)) and p.is_dir()]
    return [path for _, path in sorted(runs)]


def create_run(
    root: str | Path,
    name: str,
    config: Mapping[str, Any],
    fill: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Make the next run folder `root/00000-name` holding config.json and env.json.

    Args:
        root: folder of runs; made when missing.
        name: letters, digits, `.`, `_`, `-`.
        config: JSON object saved as config.json.
        fill: writes what else the folder is to hold, before it has its name.

    Returns:
        The new folder.

    Raises:
        ValueError: the name has other characters.
    """
    if not _RUN.fullmatch(f"00000-{name}"):
        raise Refusal(f"create_run: name is {name!r}; need letters, digits, '.', '_' or '-'")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    about = Environment.from_dict(machine_info())
    with locked(root):  # two processes never take the same number
        for left in root.iterdir():  # by a process that was killed here
            if _NEW.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)
        temp = root / f".new-{os.getpid()}-run"
        temp.mkdir()  # with the rights that the user gives to folders
        try:
            write_json(temp / CONFIG_FILE, sealed(config))
            about.save(temp / "env.json")
            fill(temp)
            runs = list_runs(root)
            number = int(runs[-1].name.partition("-")[0]) + 1 if runs else 0
            run = root / f"{number:05d}-{name}"
            os.rename(temp, run)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
    sync_folder(root)
    return run


def run_config(run: str | Path) -> dict[str, Any]:
    """Config that the run was made with.

    Raises:
        FileNotFoundError: the folder holds no config.json.
        ValueError: it is no JSON object, or not as it was written.
    """
    path = Path(run) / CONFIG_FILE
    config = unsealed(read_json(path), str(path))
    if not isinstance(config, dict):
        raise Refusal(f"{path}: not a JSON object; need a run's config")
    return _without_retired(config)


def config_of(run: str | Path) -> RunConfig:
    """Return the configuration of a run.

    Raises:
        FileNotFoundError: the folder holds no config.json.
        ValueError: it is not as it was written, or a setting is refused.
    """
    return RunConfig.from_dict(run_config(run), str(Path(run) / CONFIG_FILE))


def change_config(run: Path, **sections: Any) -> None:
    """Put sections into a run's config.json, which stays else as it was made."""
    path = run / CONFIG_FILE
    with RunLock(run):
        config = unsealed(read_json(path), str(path))
        write_json(path, sealed({**config, **sections}))


def _without_retired(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the settings of the search by stages, which later versions do not have."""
    search = config.get("search")
    if not isinstance(search, dict) or "stages" not in search:
        return config
    return {
        section: {k: v for k, v in values.items() if k not in _RETIRED.get(section, ())}
        if isinstance(values, dict)
        else values
        for section, values in config.items()
    }


def _as_read(config: dict[str, Any]) -> Any:
    """A config as its file gives it back, with lists for tuples."""
    return parse_json(to_json(config), "config")


def _readings(config: Any) -> Iterator[Any]:
    """What commands a config answers to: as it is; and without what continued its training.

    A run that was given more steps answers to the command that made it and, where no rate depends
    on their number, so that an extension restarts nothing, to one for all the steps.
    """
    from ddsm_ext.training.config import TrainConfig  # which commands that read do not need

    yield config
    train = config.get("train") if isinstance(config, dict) else None
    if isinstance(train, dict) and train.get("extensions"):
        made = {**train, "extensions": [], "steps": train["extensions"][0][1]}
        yield {**config, "train": made}
        if not TrainConfig.from_dict(train).falls:
            yield {**config, "train": {**made, "steps": train["steps"]}}


def _with_steps_of(wanted: Any, saved: Any) -> Any:
    """A saved config with the steps of the wanted one; None unless it has fewer."""
    steps, train = wanted["train"]["steps"], saved["train"]
    if train["steps"] >= steps:
        return None
    return {**saved, "train": {**train, "steps": steps, "extensions": []}}


def _with_places_of(wanted: Any, saved: Any) -> Any:
    """A saved config with the places of the wanted one: an autoencoder may have been moved."""
    if "codec" not in saved or "codec" not in wanted:
        return saved
    places = {name: wanted["codec"][name] for name in CODEC_PLACES}
    return {**saved, "codec": {**saved["codec"], **places}}


def find_resumable(
    root: str | Path,
    config: Settings | Mapping[str, Any],
    *,
    name: str | None = None,
    shorter: bool = False,
) -> Path | None:
    """Newest run under `root` that was made with the same config, finished or not.

    Args:
        root: folder of runs.
        config: settings, or a JSON object, to compare with each config.json; settings that a
            config.json lacks count as their defaults.
        name: only runs of this name; None takes any.
        shorter: instead one with the same config but for fewer train.steps.

    Returns:
        The run folder, or None.
    """
    wanted = _as_read(plain(config))
    for run in reversed(list_runs(root)):
        if name is not None and run.name.partition("-")[2] != name:
            continue
        try:
            saved = run_config(run)
        except (ValueError, FileNotFoundError) as error:
            warnings.warn(f"{one_line(error)}; this run is passed over", stacklevel=1)
            continue
        # a config of another kind, or of settings that are refused today, is another one
        with contextlib.suppress(ValueError, LookupError, TypeError):
            if "method" not in saved.get("search", {"method": None}) and "search" in wanted:
                saved = {**saved, "search": wanted["search"]}  # it was searched by other rules
            saved = _with_places_of(wanted, _as_read(completed(saved, config)))
            if shorter:
                saved = _with_steps_of(wanted, saved)
            if saved is not None and wanted in _readings(saved):
                return run
    return None


def root_of(run: Path) -> Path:
    """Return the folder of runs that a run is in, also where its path is "." or a link to it.

    A path that ends in the run's own name stays as it is: a link `runs/00003-x` into another disk
    is a run of `runs`.
    """
    real = run.resolve()
    return run.parent if (run.parent / real.name).resolve() == real else real.parent


def resolve_run(root: str | Path, selector: str | Path | int | None = None) -> Path:
    """Run folder that a user names by path, number or name; the newest for None.

    Args:
        root: folder of runs.
        selector: a folder with config.json, a run number (`3`, `00003`), a full folder name, or
            a run name (the newest of that name).

    Raises:
        FileNotFoundError: nothing matches.
    """
    runs = list_runs(root)
    if selector is None:
        if not runs:
            raise FileNotFoundError(f"{root}: holds no run; need a run folder such as 00000-name")
        return runs[-1]
    text = str(selector)
    if (Path(text) / CONFIG_FILE).is_file():
        return Path(text)
    for run in reversed(runs):
        number, _, name = run.name.partition("-")
        if text in (run.name, name) or (text.isdecimal() and int(text) == int(number)):
            return run
    known = ", ".join(run.name for run in runs[-5:]) or "none"
    raise FileNotFoundError(
        f"run {text!r}: not found under {root} (runs there: {known}); need a path, number or name"
    )
