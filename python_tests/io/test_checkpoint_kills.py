"""Saving processes that are killed at any moment leave whole checkpoints."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from ddsm_ext.io.checkpoint import load_checkpoint, newest_complete

# Imports torch once; each line on stdin starts a saving process, whose number goes to stdout.
_SAVERS = """
import os, sys, torch
from ddsm_ext.io.checkpoint import load_checkpoint, newest_complete, save_checkpoint

def save_for_ever(run, report):
    path = newest_complete(run)
    step = load_checkpoint(path, []).step if path else 0
    while True:
        step += 1
        tensors = {f"t{i}": torch.full((40_000,), float(step)) for i in range(3)}
        save_checkpoint(run, step, {"model": tensors, "ema": tensors}, {"value": step}, keep=2)
        os.write(report, b"%d " % step)

torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        report = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        save_for_ever(sys.argv[1], report)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def _kill_savers(folder, kills: int, draw: random.Random) -> None:
    """kill -9 a saving process at random moments; what it reported as saved must be there."""
    run, report = folder / "run", folder / "report"
    command = [sys.executable, "-c", _SAVERS, str(run), str(report)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as savers:
        for _ in range(kills):
            report.write_text("")
            savers.stdin.write("go\n")
            savers.stdin.flush()
            child = int(savers.stdout.readline())
            time.sleep(draw.random() * 0.2)
            os.kill(child, signal.SIGKILL)
            assert savers.stdout.readline() == "dead\n"
            _check_after_kill(run, [int(step) for step in report.read_text().split()])
        savers.stdin.close()


def _check_after_kill(run, reported: list[int]) -> None:
    path = newest_complete(run, on_damage=lambda text: pytest.fail(text))
    if path is None:
        assert not reported
        return
    checkpoint = load_checkpoint(path)
    assert checkpoint.step >= max(reported, default=0)
    for group in ("model", "ema"):
        for tensor in checkpoint.tensors[group].values():
            assert bool((tensor == checkpoint.step).all())


def test_kills_leave_the_newest_complete_one(tmp_path):
    _kill_savers(tmp_path, 20, random.Random(2))


@pytest.mark.slow
def test_two_hundred_kills_leave_the_newest_complete_one(tmp_path):
    _kill_savers(tmp_path, 200, random.Random(3))
