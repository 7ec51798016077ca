"""Command lines that nobody means well: one sentence and exit code 2, or what was asked for."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cli.commands import PACKAGE_ROOT, TINY, sets

from ddsm_ext.cli import train
from ddsm_ext.cli.main import main
from ddsm_ext.models.families import PRESETS
from ddsm_ext.run.config import SECTIONS
from ddsm_ext.settings import Refusal

HUGE = "9" * 5000  # more digits than int() reads
NESTED = "[" * 900 + "]" * 900
VALUES = (
    "NaN", "-Infinity", "1e400", HUGE, "9" * 400, "1e9", "1e12", "1e18", "9223372036854775807",
    "9223372036854775808", "-1", "0", "1e-320", "1.5", "true", "null", "", "[]", "[[1]]",
    '{"a":1}', "[1e400]", "[1000000000000000000000000]", "[" * 3000, NESTED,
    "1," * 20_000, "x" * 20_000, "\x1b[31mx", "caf\udce9", "a\0b",
)  # fmt: skip


def keys(kind: Any) -> list[str]:
    """The settings of a section."""
    return [field.name for field in dataclasses.fields(kind) if field.init]


# A preset with each setting: of the networks', one of the family that has it.
CASES = [
    (preset, f"model.{key}")
    for preset in ("digits", "adm-digits")
    for key in keys(type(PRESETS[preset]))
]
CASES += [
    ("digits", f"{section}.{key}")
    for section, (module, name) in SECTIONS.items()
    if section != "model"
    for key in keys(getattr(import_module(module), name))
]


def short(line: list[str]) -> str:
    return " ".join(line)[:40]


def dangerous(text: str) -> list[str]:
    """What a terminal may obey, or cannot show."""
    return [c for c in text if not c.isprintable() and c not in "\n\t"]


def ends_well(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command that is refused or works; return its code and what it said."""
    code = main(arguments)
    said = capsys.readouterr()
    assert code in (0, 2), said.err
    assert "Traceback" not in said.err
    assert not dangerous(said.err)
    if code == 2:
        sentences = [line for line in said.err.splitlines() if line.startswith("ddsm")]
        last = sentences.pop()
        assert said.err.endswith(f"{last}\n")
        assert all(line.startswith("ddsm: warning: ") for line in sentences)
        assert len(last) < 1100
    return code, said.err


@pytest.mark.parametrize(("preset", "name"), CASES)
def test_no_value_of_a_setting_is_a_fault(preset: str, name: str) -> None:
    """A value is a setting, or a `Refusal` of one sentence that says what is needed."""
    refused = []
    for value in VALUES:
        given = argparse.Namespace(preset=preset, config=None, data=None, set=[f"{name}={value}"])
        try:
            train.settings(given)
        except Refusal as error:
            refused.append(str(error))
    assert refused
    assert all("need" in sentence for sentence in refused)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.ch=1000000000", "weights; need at most"),
        ("model.ch=100000", "weights; need at most"),
        ("model.ch_mult=[1000000000]", "weights; need at most"),
        ("model.ch_mult=" + "1," * 40 + "1", "of at most 15"),
        ("model.image_size=1000000000", "need an int <= 16384"),
        ("model.image_channels=1000000000", "need an int <= 4096"),
        ("model.num_res_blocks=100000", "need an int <= 32"),
        ("model.time_table_rows=1000000000", "need an int <= 1000000"),
        ("diffusion.timesteps=1000000000000", "need at most 100000"),
        ("train.workers=100000", "need at most 256"),
        ("train.batch_size=1000000000", "need at most 1048576"),
        ("train.steps=1e30", "need a whole number below 2^63"),
        ("search.population=1000000000", "need at most 10000"),
        ("eval.images=1000000000000", "need at most 10000000"),
        ("eval.first_seed=9223372036854775807", "seeds end at 2^63"),
    ],
)
@pytest.mark.parametrize("more", [[], ["-n"]])
def test_what_no_machine_holds_is_refused_before_it_is_built(
    setting: str,
    expected: str,
    more: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["train", "--preset", "digits", "--root", str(tmp_path / "runs"), *more]
    code, said = ends_well([*line, "--set", setting], capsys)
    assert code == 2
    assert expected in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "setting", ["model.ch=20000", "model.image_size=16384", "train.batch_size=1000000"]
)
def test_what_this_machine_does_not_hold_is_refused_but_for_a_dry_run(
    setting: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ddsm_ext.run.costs.memory_bytes", lambda: 16 * 10**9)
    line = ["train", "--preset", "digits", "--root", str(tmp_path / "runs"), "--set", setting]
    code, said = ends_well(line, capsys)
    assert code == 2
    assert "GB of memory, there are 16; need a smaller batch or network" in said
    assert main([*line, "-n"]) == 0
    assert "memory: about" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one trained run."""
    folder = tmp_path_factory.mktemp("evil") / "runs"
    assert main(["train", "--root", str(folder), "--name", "x", *sets(TINY)]) == 0
    return folder


LINES = [
    ["sample", "--seeds", HUGE],
    ["sample", "--seeds", f"0-{HUGE}"],
    ["sample", "--seeds", "0-99999999999999999999"],
    ["sample", "--seeds", "9223372036854775808"],
    ["sample", "--batch-size", "99999999999999999999"],
    ["sample", "--batch-size", "0"],
    ["sample", "--steps", HUGE],
    ["sample", "--steps", "1000000000000"],
    ["sample", "--strategy", "nan"],
    ["sample", "--strategy", HUGE],
    ["sample", "--strategy", "\x1b[31mx"],
    ["sample", "--device", "cuda:99999999999999999"],
    ["sample", "--device", "\x1b[31m"],
    ["sample", "--weights", "caf\udce9"],
    ["sample", "--set", "sampler.kind=" + "[" * 3000],
    ["sample", "--\x1b]0;pwned\x07"],
    ["sample", "--run", "\u202ex"],
    ["search", "--budget-macs", "nan"],
    ["search", "--budget-ms", "1e400"],
    ["search", "--max-quality-loss", "inf"],
    ["search", "--method", "\x1b[31m"],
    ["search", "--set", "search.pool=99999999"],
    ["search", "--set", "search.seed=99999999999999999999999"],
    ["search", "--set", "eval.batch_size=1e12"],
    ["eval", "--seeds", ""],
    ["eval", "--ranges", "99999999999999"],
    ["eval", "--seeds", "9223372036854775806-9223372036854775807", "--ranges", "2"],
    ["eval", "--features", "\x1b[31m"],
    ["eval", "--images", "no\x1b[31mwhere"],
    ["eval", "--set", "eval.kid_subsets=1000000000"],
    ["eval", "--save-statistics", "x"],
    ["tune", "--strategy", "0.5", "--steps", "9" * 30],
    ["tune", "--strategy", "0.5", "--extend", "9" * 30],
    ["tune", "--strategy", "nan"],
    ["tune", "--strategy", "0.5", "--set", "train.workers=99999"],
    ["export", "--width", "nan"],
    ["export", "--width", "1e400"],
    ["report", "--run", "\x1b[31m"],
]
ELSEWHERE = [
    ["train", "--extend", "9" * 30],
    ["train", "--preset", "\x1b[31m"],
    ["train", "--name", "a\nb"],
    ["train", "--set", "\x1b[2J.x=1"],
    ["quickstart", "--threads", "99999999999"],
    ["quickstart", "--threads", "0"],
    ["quickstart", "--set", "train.steps=1e400"],
    ["bench", "--batch", "99999999999999"],
    ["bench", "--threads", "99999999999"],
    ["bench", "--widths", "nan"],
    ["bench", "--candidates", "\x1b[31m"],
    ["classifier", "--out", "x.safetensors", "--epochs", "9" * 30],
    ["convert", "no\x1b[31mwhere"],
    ["checks", "--device", "\x1b[31m"],
    ["\x1b[31mevil"],
    ["caf\udce9"],
    ["x" * 10_000],
]


@pytest.mark.parametrize("line", LINES, ids=short)
def test_commands_on_a_run_are_refused_before_any_work(
    line: list[str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(root.rglob("*"))
    command, *rest = line
    assert ends_well([command, "--root", str(root), *rest], capsys)[0] == 2
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("line", ELSEWHERE, ids=short)
def test_other_commands_are_refused_before_any_work(
    line: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ends_well(line, capsys)[0] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        '{"train": {"steps": NaN}}',
        '{"train": {"steps": 1e400}}',
        f'{{"train": {{"steps": {HUGE}}}}}',
        f'{{"train": {{"steps": {NESTED}}}}}',
        f'{{"sampler": {{"kind": {NESTED}}}}}',
        '{"train": ' + "[" * 9000,
        '{"data": {"source": 1.10}}',
        '{"data": {"source": true}}',
        '{"data": {"source": "a\\u0000b"}}',
        '{"model": {"ch": 100000000000000000000}}',
        '{"\\u001b[31m": {}}',
        '{"train": {"\\u202e": 1}}',
        '{"train": "\\u001b[31m"}',
    ],
)
def test_config_files_are_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evil\x1b[31m.json"
    file.write_text(content)
    line = ["train", "--preset", "digits", "--config", str(file), "-n"]
    assert ends_well(line, capsys)[0] == 2


def test_names_that_are_no_text_serve_as_any_other(root: Path, tmp_path: Path) -> None:
    """A byte of a path that is no UTF-8: nothing fails after the work, and stdout is the path."""
    name = b"caf\xe9"
    for line, made in (
        (
            ["sample", "--root", str(root), "--seeds", "0-1", "--strategy", "1", "--out"],
            b"grid.png",
        ),
        (["train", *sets(TINY), "--root"], b"00000-digits"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ddsm_ext.cli.main", *line, name],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": PACKAGE_ROOT, "PYTHONUTF8": "1"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == name + b"/" + made + b"\n"
        assert Path(os.fsdecode(bytes(tmp_path) + b"/" + name + b"/" + made)).exists()
    noted = (root / "00000-x" / "commands.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(noted[-1])["command"].endswith(f"--out '{os.fsdecode(name)}'")
