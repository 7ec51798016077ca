"""Training end to end on a toy network: exact resume, NaN guard, interrupts, files."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from training.same_run import assert_same_run
from training.toy_net import SCHEDULE, StopAt, ToyNet, config, run_train, toy_data

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import load_dataset
from ddsm_ext.data.images import read_image
from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.io.checkpoint import list_checkpoints, load_checkpoint, newest_complete
from ddsm_ext.io.files import read_jsonl
from ddsm_ext.training.loop import train
from ddsm_ext.training.session import NonFiniteError


def test_loss_falls_and_files_are_written(tmp_path):
    cfg = config(steps=100, batch_size=16, log_every=20, lr=3e-2)
    digits, noisy = load_dataset(DataConfig()), make_schedule(DiffusionConfig())
    result = train(ToyNet(), digits, noisy, cfg, tmp_path)
    assert (result.step, result.finished, result.interrupted) == (100, True, False)
    rows = read_jsonl(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows] == [20, 40, 60, 80, 100]
    assert result.last_row == rows[-1]
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    wanted = {"loss", "loss_w1.0", "loss_w0.75", "loss_w0.5", "loss_w0.25", "grad_norm", "lr"}
    assert wanted | {"images_per_s"} <= rows[-1].keys()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000096", "step-000100"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shared_noise": False, "middle_widths": 2},
        {"distill_weight": 0.5, "loss_weighting": "min_snr", "lr_final": 0.1},
        {"autocast": "bf16", "optimizer": "adamw", "weight_decay": 0.01, "ema_ramp": False},
        {"distill_balanced": True, "distill_weight": 0.5, "width_weights": (1, 2, 2, 1)},
        {"teacher": "ema", "distill_weight": 0.5, "middle_choice": "budget"},
        {"teacher": "ema", "distill_weight": 0.5, "shared_noise": False},
        {"teacher": "ema", "distill_weight": 0.5, "t_importance": 0.5, "middle_widths": 2},
        {"teacher": "ema", "t_importance": 0.9, "autocast": "bf16"},
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, changes):
    cfg = config(**changes)
    run_train(tmp_path / "whole", cfg)
    for step in (5, 9, 17):
        result = run_train(tmp_path / "parts", cfg, StopAt(step))
        if result.finished:
            break
        assert result.interrupted
        assert result.checkpoint == newest_complete(tmp_path / "parts")
    assert run_train(tmp_path / "parts", cfg, ToyNet(seed=99)).finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("workers", [2, 4])
def test_loader_processes_change_nothing(tmp_path, workers):
    run_train(tmp_path / "none", config(steps=12))
    assert run_train(tmp_path / "some", config(steps=12, workers=workers), StopAt(5)).interrupted
    run_train(tmp_path / "some", config(steps=12, workers=workers))
    assert_same_run(tmp_path / "none", tmp_path / "some")


_TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from training.toy_net import config, run_train
result = run_train(Path(sys.argv[1]), config(**eval_free(sys.argv[3])))
print(result.interrupted, result.finished)
""".replace("eval_free", "__import__('json').loads")


def start_training(run_dir, **changes) -> subprocess.Popen:
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, "-c", _TRAIN, str(run_dir), tests, json.dumps(changes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_log(run_dir, job, rows: int = 1) -> None:
    log = run_dir / "log.jsonl"
    while job.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < rows):
        time.sleep(0.005)


@pytest.fixture
def one_thread():
    """The killed processes run on one thread; torch's sums depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _kill_and_resume(tmp_path, kills: int, seed: int) -> None:
    draw, steps = random.Random(seed), 60 * kills
    changes = {"steps": steps, "checkpoint_every": 7}
    for count in range(kills):
        job = start_training(tmp_path / "killed", **changes)
        wait_for_log(tmp_path / "killed", job, rows=1 + count)
        time.sleep(draw.random() * 0.1)
        job.kill()
        job.communicate()
    run_train(tmp_path / "killed", config(**changes))
    run_train(tmp_path / "whole", config(**changes))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.usefixtures("one_thread")
def test_kill_and_resume_equals_uninterrupted(tmp_path):
    _kill_and_resume(tmp_path, 2, seed=1)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_many_kills_and_resumes_equal_uninterrupted(tmp_path):
    _kill_and_resume(tmp_path, 20, seed=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_saves_and_returns(tmp_path, number):
    job = start_training(tmp_path, steps=100_000, checkpoint_every=100_000)
    wait_for_log(tmp_path, job)
    job.send_signal(number)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert out.split() == ["True", "False"]
    assert "finishing the step and saving" in err
    assert newest_complete(tmp_path) is not None


@pytest.fixture
def ctrl_c_raises():
    """A shell's background job starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_raises")
def test_second_signal_aborts(tmp_path):
    class Twice(ToyNet):
        def forward(self, x, t, width):
            os.kill(os.getpid(), signal.SIGINT)
            return super().forward(x, t, width)

    with pytest.raises(KeyboardInterrupt):
        run_train(tmp_path, config(), Twice())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread(tmp_path):
    done = []
    job = threading.Thread(target=lambda: done.append(run_train(tmp_path, config(steps=2))))
    job.start()
    job.join()
    assert done[0].finished


class Poisoned(ToyNet):
    """Returns or backpropagates non-finite values in given steps."""

    def __init__(self, steps, value: float, where: str) -> None:
        super().__init__()
        self.steps, self.value, self.where, self.seen = set(steps), value, where, 0

    def forward(self, x, t, width):
        y = super().forward(x, t, width)
        step = self.seen // 3
        self.seen += self.training
        if step not in self.steps:
            return y
        if self.where == "loss":
            return y * self.value
        y.register_hook(lambda gradient: gradient * self.value)
        return y


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_steps_change_no_parameter(tmp_path, where, value):
    """Steps 6 to 9 are bad: the checkpoint of step 10 must equal that of step 6."""
    cfg = config(steps=10, checkpoint_every=1, keep=10)
    run_train(tmp_path, cfg, Poisoned(range(6, 10), value, where))
    before, after = (
        load_checkpoint(tmp_path / "checkpoints" / f"step-{step:06d}").tensors for step in (6, 10)
    )
    changed = 0
    for group in before:
        for name, tensor in before[group].items():
            if not name.endswith("calls"):  # a counter of the toy, no parameter
                changed += not torch.equal(tensor, after[group][name])
                assert torch.isfinite(after[group][name]).all()
    assert changed == 0
    assert read_jsonl(tmp_path / "log.jsonl")[-1]["skipped"] == 2


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_five_in_a_row_stop_and_keep_the_last_good_checkpoint(tmp_path, where):
    cfg = config(steps=30, checkpoint_every=6)
    net = Poisoned(range(13, 30), float("nan"), where)
    with pytest.raises(NonFiniteError, match=r"5 steps in a row.*last checkpoint is kept") as error:
        run_train(tmp_path, cfg, net)
    assert "step 17" in str(error.value)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000006", "step-000012"]
    assert read_jsonl(tmp_path / "log.jsonl")[-1]["step"] == 18
    assert run_train(tmp_path, cfg).finished  # a good network goes on from there
    run_train(tmp_path / "whole", cfg)
    assert_same_run(tmp_path, tmp_path / "whole")


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    cfg = config(steps=6, checkpoint_every=6)
    run_train(tmp_path, cfg)

    class Broken(ToyNet):
        def forward(self, x, t, width):
            y = super().forward(x, t, width)
            with torch.no_grad():
                self.calls.fill_(0)
                self.first.weight.data.view(-1)[0] = float("inf")
            return y

    with pytest.raises(ValueError, match="not finite"):
        run_train(tmp_path, config(steps=7, max_bad_steps=2, checkpoint_every=1), Broken())
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000006"]


def test_finished_run_is_left_alone(tmp_path):
    run_train(tmp_path, config(steps=6))
    log = (tmp_path / "log.jsonl").read_bytes()
    net = ToyNet(seed=7)
    result = run_train(tmp_path, config(steps=6), net)
    assert (result.step, result.finished) == (6, True)
    assert net.widths == []
    assert (tmp_path / "log.jsonl").read_bytes() == log
    saved = load_checkpoint(result.checkpoint).tensors["model"]
    assert all(torch.equal(saved[name], t) for name, t in net.state_dict().items())


def test_more_steps_go_on(tmp_path):
    run_train(tmp_path / "parts", config(steps=12))
    run_train(tmp_path / "parts", config(steps=24))
    run_train(tmp_path / "whole", config(steps=24))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_fewer_or_more_steps_of_a_falling_rate_are_refused(tmp_path):
    run_train(tmp_path, config(steps=12, lr_final=0.1))
    log = (tmp_path / "log.jsonl").read_bytes()
    for steps in (10, 24):
        need = rf"steps=12 and a rate that falls.*now steps is {steps}.*`--extend {steps}`"
        with pytest.raises(ValueError, match=need):
            run_train(tmp_path, config(steps=steps, lr_final=0.1))
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_an_extended_run_restarts_the_rate_and_resumes_bit_for_bit(tmp_path):
    short = config(steps=12, lr_final=0.1)
    longer = short.extended(12, 30, lr=4e-3)
    for name in ("whole", "parts"):
        run_train(tmp_path / name, short)
    run_train(tmp_path / "whole", longer)
    assert run_train(tmp_path / "parts", longer, StopAt(4)).interrupted
    assert run_train(tmp_path / "parts", longer).finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    rows = {row["step"]: row["lr"] for row in read_jsonl(tmp_path / "whole" / "log.jsonl")}
    # 15 of 18 steps: the row of step 28 has the rate of step 27, which is 0-based
    cosine = 0.5 * (1 + math.cos(math.pi * 15 / 18))
    assert rows[28] == pytest.approx(1e-3 + (4e-3 - 1e-3) * cosine)
    about = load_checkpoint(newest_complete(tmp_path / "whole")).state["train"]
    assert about["extensions"] == [[12, 12, 4e-3]]
    assert about["steps"] == 30


def test_an_extended_run_whose_last_checkpoint_is_damaged_repeats_the_steps_before(tmp_path):
    """It goes back behind the restart: the steps up to there have their old rates."""
    short = config(steps=12, lr_final=0.0)
    longer = short.extended(12, 18)
    for name in ("whole", "parts"):
        run_train(tmp_path / name, short)
    run_train(tmp_path / "whole", longer)
    (tmp_path / "parts" / "checkpoints" / "step-000012" / "MANIFEST.sha256").write_text("")
    said = []
    run_train(tmp_path / "parts", longer, on_damage=said.append)
    assert "step-000012" in said[0]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_an_averaged_teacher_moves_with_the_average(tmp_path):
    taught = []

    class Taught(ToyNet):
        def __deepcopy__(self, memo):
            taught.append(ToyNet())
            return taught[-1]

    run_train(tmp_path, config(teacher="ema", distill_weight=0.5), Taught())
    (held,) = taught
    saved = load_checkpoint(newest_complete(tmp_path)).tensors["ema"]
    assert all(torch.equal(t, saved[name]) for name, t in held.state_dict().items())
    assert set(held.widths) == {1.0}
    assert not held.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"lr": 1e-3}, "with lr=0.01, now it is 0.001"), ({"batch_size": 6}, "batch_size=5")],
)
def test_other_settings_do_not_resume(tmp_path, changes, message):
    run_train(tmp_path, config(steps=6))
    with pytest.raises(ValueError, match=message):
        run_train(tmp_path, config(**changes))


def test_other_data_or_network_does_not_resume(tmp_path):
    run_train(tmp_path, config(steps=6))
    with pytest.raises(ValueError, match="was trained on other images"):
        train(ToyNet(), toy_data(38), SCHEDULE, config(), tmp_path)
    other = ToyNet()
    other.extra = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="model lacks 'extra'"):
        run_train(tmp_path, config(), other)
    with pytest.raises(ValueError, match="parameterisation 'epsilon', now it is 'v'"):
        run_train(tmp_path, config(), parameterisation="v")
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000006"]


def test_damaged_newest_checkpoint_falls_back_with_a_sentence(tmp_path):
    run_train(tmp_path, config(steps=12))
    (tmp_path / "checkpoints" / "step-000012" / "optim.safetensors").write_bytes(b"")
    said = []
    assert run_train(tmp_path, config(steps=24), on_damage=said.append).finished
    assert "optim.safetensors does not match" in said[0]
    run_train(tmp_path / "whole", config(steps=24))
    assert_same_run(tmp_path, tmp_path / "whole")


def test_sample_grids_show_the_averaged_weights_of_each_width(tmp_path):
    seen = []

    def grid(net, width):
        seen.append((width, net.training, net.first.weight.detach().clone()))
        return np.full((4, 5, 1), int(width * 100), np.uint8)

    net = ToyNet()
    run_train(tmp_path, config(steps=12, sample_every=6, checkpoint_every=6), net, sample_grid=grid)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    widths = ("0.25", "0.5", "0.75", "1.0")
    assert names == [f"step-{s:06d}-w{w}.png" for s in (6, 12) for w in widths]
    assert read_image(tmp_path / "samples" / "step-000012-w0.75.png")[0, 0, 0] == 75
    checkpoint = load_checkpoint(newest_complete(tmp_path))
    for width, training, weight in seen[4:]:
        assert width in (1.0, 0.75, 0.5, 0.25)
        assert not training
        assert torch.equal(weight, checkpoint.tensors["ema"]["first.weight"])
    assert torch.equal(net.first.weight, checkpoint.tensors["model"]["first.weight"])
    assert net.training


def test_sampling_changes_no_weight(tmp_path):
    def grid(net, width):
        torch.manual_seed(0)
        net(torch.randn(1, 1, 6, 6), torch.zeros(1), width)
        return np.zeros((4, 4, 3), np.uint8)

    run_train(tmp_path / "with", config(sample_every=5), sample_grid=grid)
    run_train(tmp_path / "without", config())
    assert_same_run(tmp_path / "with", tmp_path / "without")
