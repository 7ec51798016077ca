"""The command line as a new user meets it: quick help, near misses, refusals in one sentence."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from cli.commands import PACKAGE_ROOT

import ddsm_ext
from ddsm_ext.cli import main as cli


def ddsm(*arguments: str, cwd: Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run `ddsm` in a process of its own."""
    path = os.pathsep.join([PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "ddsm_ext.cli.main", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if code is not None:
        assert done.returncode == code, done.stderr
    return done


def refused(*arguments: str, cwd: Path) -> str:
    """Run `ddsm`, expect a refusal in one sentence with nothing written, and return it."""
    before = sorted(cwd.rglob("*"))
    done = ddsm(*arguments, cwd=cwd, code=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert sorted(cwd.rglob("*")) == before
    return done.stderr


def test_help_names_every_command_and_is_quick(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(3):
        text = ddsm("--help", cwd=tmp_path).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(name in text for name in cli.COMMANDS)
    # processor time: what else runs on the machine does not change it
    seconds = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 3
    assert seconds < 0.3


@pytest.mark.parametrize("arguments", [["--help"], *([n, "--help"] for n in cli.COMMANDS)])
def test_help_loads_neither_torch_nor_numpy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from ddsm_ext.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'sklearn', 'pymoo'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PACKAGE_ROOT},
        stdout=subprocess.DEVNULL,
    )


def test_version(tmp_path: Path) -> None:
    assert ddsm("--version", cwd=tmp_path).stdout.strip() == f"ddsm {ddsm_ext.__version__}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "did you mean train?"),
        (["smaple", "--seeds", "0-3"], "did you mean sample?"),
        (["--verison"], "did you mean --version?"),
        (["train", "--pre-set", "digits"], "did you mean --preset?"),
        (["sample", "--seed=3"], "did you mean --seeds?"),
        (["train", "--preset", "digist"], "did you mean digits?"),
        (["train", "--set", "train.step=5"], "did you mean steps?"),
        (["train", "--set", "trian.steps=5"], "did you mean train?"),
        (["train", "--set", "model.chh=5"], "did you mean ch?"),
        (["train", "--set", "diffusion.schedule=cosin"], "did you mean cosine?"),
        (["zzz"], "known: quickstart"),
    ],
)
def test_near_misses_are_named(arguments: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in refused(*arguments, cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--set", "steps"], "need section.key=value"),
        (["train", "--set", "train.steps=many"], "train.steps is 'many'; need a whole number"),
        (["train", "--set", "train.steps=0"], "steps is 0"),
        (["train", "--set", "model.widths=1,0"], "width"),
        (["train", "--config", "missing.json"], "missing.json"),
        (["train", "--data", "missing-folder"], "missing-folder"),
        (["train", "--device", "tpu"], "--device is 'tpu'"),
        (["train", "extra"], "unexpected argument 'extra'"),
        (["sample", "--seeds", "0-"], "--seeds is '0-'"),
        (["sample"], "holds no run"),
        (["search"], "holds no run"),
        (["eval", "--run", "7"], "not found"),
        (["report", "--run", "nothing"], "not found"),
        (["report", "--out", "runs/00000-x/config.json"], "need a name that ends in .html"),
        (["export"], "--width"),
        (["convert", "missing.pt"], "missing.pt: no such file"),
        (["quickstart", "--set", "model.ch=33"], "ch is 33"),
    ],
)
def test_bad_input_is_refused_with_nothing_written(
    arguments: list[str], expected: str, tmp_path: Path
) -> None:
    assert expected in refused(*arguments, cwd=tmp_path)


def test_a_bug_of_ours_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(lambda: len(5)) == 1  # type: ignore[arg-type]
    assert "Traceback" in capsys.readouterr().err


def test_interruption_has_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert cli.exit_code(interrupted) == 130
    assert "the same command continues" in capsys.readouterr().err
