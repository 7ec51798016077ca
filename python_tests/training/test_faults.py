"""What a training makes of files that are damaged, unreadable, another's, or gone."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from training.same_run import assert_same_run
from training.toy_net import SCHEDULE, StopAt, ToyNet, config, run_train, toy_data

from ddsm_ext.io.checkpoint import list_checkpoints
from ddsm_ext.io.files import read_jsonl
from ddsm_ext.io.lock import RunLock
from ddsm_ext.training.loop import train

CONFIG = config(steps=12, checkpoint_every=4, log_every=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    run_train(run, CONFIG)
    return run


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    assert run_train(run, CONFIG, StopAt(5)).step == 7
    return run


def contents(run: Path) -> dict[str, bytes]:
    files = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], b"\x00\xff" + lines[1][2:], *lines[2:]],
        lambda lines: [lines[0][:9], *lines[1:]],
        lambda lines: [*lines[:3], b"[1, 2]", *lines[3:]],
        lambda lines: [*lines[:2], b'{"step": 1e999}', b'{"loss": "NaN"', *lines[2:]],
    ],
)
def test_a_damaged_log_stops_nothing_and_is_kept_aside(stopped: Path, damage: Any) -> None:
    log = stopped / "log.jsonl"
    damaged = b"\n".join(damage(log.read_bytes().split(b"\n")))
    log.write_bytes(damaged)
    good = [json.loads(row)["step"] for row in damaged.split(b"\n") if row.startswith(b'{"step": ')
            and row.endswith(b"}") and b"1e999" not in row]  # fmt: skip
    with pytest.warns(UserWarning, match=r"log\.jsonl: \d lines are no JSON objects"):
        assert run_train(stopped, CONFIG, ToyNet(seed=9)).finished
    (aside,) = stopped.glob("log.damaged-*.jsonl")
    assert aside.read_bytes() == damaged
    assert [row["step"] for row in read_jsonl(log)] == [*good, *range(8, 13)]


@pytest.mark.parametrize("file", ["MANIFEST.sha256", "model.safetensors", "state.json", "log"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_what_cannot_be_read_is_not_damaged(
    stopped: Path, whole: Path, file: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(stopped / "log.jsonl") if file == "log" else file
    before, real = contents(stopped), open

    def failing(path: Any, *args: Any, **more: Any) -> Any:
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", failing)
        with pytest.raises(OSError, match="can be read") as caught:
            run_train(stopped, CONFIG, ToyNet(seed=9))
    assert caught.value.errno == number
    assert str(caught.value.filename).endswith(name)
    assert contents(stopped) == before
    assert run_train(stopped, CONFIG, ToyNet(seed=9)).finished
    assert_same_run(whole, stopped)


def test_nothing_begins_anew_over_damaged_checkpoints(stopped: Path) -> None:
    for path in list_checkpoints(stopped):
        (path / "model.safetensors").write_bytes(b"x")
    before = contents(stopped)
    with (
        pytest.warns(UserWarning, match="taking the next older one"),
        pytest.raises(ValueError, match=r"none of its 2 checkpoints is whole"),
    ):
        run_train(stopped, CONFIG)
    assert contents(stopped) == before


@pytest.mark.parametrize("what", ["broken link", "file"])
def test_checkpoints_that_are_no_folder_are_not_absent(stopped: Path, what: str) -> None:
    checkpoints, log = stopped / "checkpoints", (stopped / "log.jsonl").read_bytes()
    checkpoints.rename(stopped / "elsewhere")
    if what == "file":
        checkpoints.touch()
    else:
        checkpoints.symlink_to(stopped / "unmounted")
    with pytest.raises(OSError, match="checkpoints"):
        run_train(stopped, CONFIG)
    assert (stopped / "log.jsonl").read_bytes() == log


def test_the_second_training_of_a_run_is_refused(stopped: Path) -> None:
    said: list[str] = []

    def second() -> None:
        before = contents(stopped)
        try:
            run_train(stopped, CONFIG)
        except ValueError as error:
            said.append(str(error))
        assert contents(stopped) == before

    with RunLock(stopped):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in said[0]
    assert "is writing into it" in said[0]


class MovesAway(ToyNet):
    """Moves the run folder away within a step, as a person might."""

    def __init__(self, run: Path, how: str, calls: int) -> None:
        super().__init__()
        self.run, self.how, self.calls_left = run, how, calls

    def forward(self, x: torch.Tensor, t: torch.Tensor, width: float) -> torch.Tensor:
        self.calls_left -= self.training
        if not self.calls_left:
            if self.how == "removed":
                shutil.rmtree(self.run)
            else:
                self.run.rename(self.run.with_name("moved"))
        return super().forward(x, t, width)


@pytest.mark.parametrize("how", ["moved", "removed"])
@pytest.mark.parametrize("calls", [1, 11, 12])  # in the first step, before row and checkpoint
def test_a_run_that_was_moved_gets_nothing_more(tmp_path: Path, how: str, calls: int) -> None:
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"was moved or removed while this process wrote into it"):
        run_train(run, CONFIG, MovesAway(run, how, calls))
    assert not run.exists()
    if how == "moved":
        assert run_train(tmp_path / "moved", CONFIG).finished


@pytest.mark.parametrize("step", [8, 12])
def test_pictures_that_a_kill_left_out_are_drawn(tmp_path: Path, step: int) -> None:
    cfg = config(steps=12, checkpoint_every=4, sample_every=8)

    def grid(net: Any, width: float) -> Any:
        with torch.no_grad():
            made = net(torch.zeros(1, 1, 6, 6), torch.zeros(1), width)
        return (made[0].permute(1, 2, 0).numpy() * 1000 % 255).astype("uint8")

    whole, run = tmp_path / "whole", tmp_path / "run"
    run_train(whole, cfg, sample_grid=grid)
    shutil.copytree(whole, run)
    for path in list_checkpoints(run):
        if int(path.name[-6:]) > step:
            shutil.rmtree(path)
    for path in (run / "samples").iterdir():
        if int(path.name[5:11]) >= step:
            path.unlink()
    run_train(run, cfg, ToyNet(seed=9), sample_grid=grid)
    found, wanted = contents(run / "samples"), contents(whole / "samples")
    assert found == wanted
    assert len(wanted) == 8


def test_a_training_with_flips_is_not_resumed_without(tmp_path: Path) -> None:
    run_train(tmp_path, config(steps=2))
    still = dataclasses.replace(toy_data(), flips=False)
    with pytest.raises(ValueError, match=r"was trained with flips True, now it is False"):
        train(ToyNet(), still, SCHEDULE, config(steps=2), tmp_path)


def test_weights_of_other_settings_are_not_resumed(tmp_path: Path) -> None:
    settings = {"model": {"ch": 8, "groups": 4}, "diffusion": {"timesteps": 50}}
    run_train(tmp_path, config(steps=2), settings=settings)
    other = {**settings, "model": {"ch": 8, "groups": 2}}
    with pytest.raises(ValueError, match=r"with model.groups 4, now it is 2; need the same"):
        run_train(tmp_path, config(steps=2), settings=other)
    assert run_train(tmp_path, config(steps=2), settings=settings).finished
    assert run_train(tmp_path, config(steps=2)).finished  # nothing is known of the settings
