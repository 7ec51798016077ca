"""Cases of training and search by the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cases.made import UNSCORED, Said, folder, labelled, train_line
from cli.commands import PACKAGE_ROOT, sets
from training.toy_net import config, run_train

Ddsm = Callable[..., Said]


def steps_logged(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_name_taken_from_the_data(ddsm: Ddsm) -> None:
    """C01: bmaltais/kohya_ss#3059, AntonMu/TrainYourOwnYOLO#62."""
    said = ddsm(*train_line(folder("my photos"), *UNSCORED))
    assert said.code == 0, said.err


def test_paths_read_as_json(ddsm: Ddsm) -> None:
    """C02: hydra-ecosystem/hydra#2599, #1163."""
    said = ddsm(*train_line(folder("1.10"), "--name", "x", *UNSCORED))
    assert said.code == 0, said.err


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 30])
def test_numbers_beyond_int(number: str, ddsm: Ddsm) -> None:
    """C03: the kind of hydra-ecosystem/hydra#999."""
    said = ddsm(*train_line(folder("flat"), "--set", f"train.steps={number}", "-n"))
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "train.steps is" in said.err


def test_unlabelled_photographs(ddsm: Ddsm) -> None:
    """C04: facebookresearch/DiT#38. Train, then search: it works, or is refused at once."""
    line = train_line(folder("flat"))
    refused = ddsm(*line, "--set", "eval.features=classifier")
    assert refused.code == 2
    assert "the images of flat have no classes" in refused.err
    assert not Path("runs").exists()
    assert ddsm(*line, *UNSCORED).code == 0
    said = ddsm("search")
    assert said.code == 0, said.err


def test_learning_rate_on_resume(here: Path) -> None:
    """C05: mlfoundations/open_clip#141, Nerogar/OneTrainer#297. A rate that fell to nothing would
    rise again."""
    fallen = {"lr_final": 0.0, "log_every": 1}
    run_train(here, config(steps=10, **fallen))
    with pytest.raises(ValueError, match="steps"):
        run_train(here, config(steps=20, **fallen))
    rates = [json.loads(line)["lr"] for line in Path("log.jsonl").read_text().splitlines()]
    assert len(rates) == 10
    assert rates[9] < rates[5]


def test_a_finished_run_cannot_go_on(trained: Path, ddsm: Ddsm) -> None:
    """C06: nicklashansen/tdmpc2#7."""
    assert ddsm(*train_line("lab", "--set", "train.steps=6")).path == trained
    assert [run.name for run in Path("runs").iterdir()] == ["00000-lab"]
    assert steps_logged(trained) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("setting", ["data.image_size=16", "data.channels=1"])
def test_data_and_model_disagree(setting: str, ddsm: Ddsm) -> None:
    """C07: the kind of dvschultz/stylegan2-ada#14."""
    said = ddsm(*train_line(labelled("lab"), "--set", setting))
    assert said.code == 2
    assert setting.split("=")[0] in said.err
    assert not Path("runs").exists()


def test_grid_scored_as_a_sample(trained: Path, ddsm: Ddsm) -> None:
    """C08: grid.png stands beside the samples."""
    assert ddsm("sample", "--seeds", "0-3", "--out", "s").code == 0
    assert len(list(Path("s").glob("*.png"))) == 5
    assert json.loads(ddsm("eval", "--images", "s").out)["images"] == 4


def test_a_refused_search_hides_the_old_one(trained: Path, ddsm: Ddsm) -> None:
    """C09: the next samples would be of another strategy than those before."""
    assert ddsm("search").code == 0
    kept = {file: file.read_bytes() for file in (trained / "search").iterdir() if file.is_file()}
    assert trained / "search" / "strategy.json" in kept
    assert ddsm("search", "--budget-ms", "0.000001").code == 2
    assert {file: file.read_bytes() for file in kept} == kept


def test_a_budget_as_it_was_printed(trained: Path, ddsm: Ddsm) -> None:
    """C10: the least budget that a refusal names was refused as well."""
    refused = ddsm("search", "--budget-macs", "0.01")
    assert refused.code == 2
    least = re.search(r"costs \S+ \(([0-9.]+)\)", refused.err)
    assert least, refused.err
    said = ddsm("search", "--budget-macs", least[1])
    assert said.code == 0, said.err


def test_linear_schedule_with_few_timesteps(ddsm: Ddsm) -> None:
    """C11: zoubohao/DenoisingDiffusionProbabilityModel-ddpm-#14, huggingface/diffusers#12341. 100
    of its timesteps end far from noise, where sampling begins."""
    said = ddsm(*train_line(folder("flat"), "--set", "diffusion.timesteps=100", "-n", *UNSCORED))
    assert said.code == 0
    assert "warning: the noise schedule of 100 timesteps ends at log-SNR -0.56" in said.err


def test_own_photographs_become_8x8_grey(ddsm: Ddsm) -> None:
    """C12: without a preset the network is the digits'."""
    said = ddsm("train", "--data", str(folder("big", 8, 64)), *sets(["train.steps=2"]))
    assert said.code == 2
    assert "--preset (digits 8x8" in said.err


def test_two_trainings_in_one_folder(ddsm: Ddsm) -> None:
    """C13: Lightning-AI/pytorch-lightning#12369. A job that is queued again."""
    line = train_line(labelled("lab"), *sets(["train.steps=1000000", "train.checkpoint_every=5"]))
    command = [sys.executable, "-m", "ddsm_ext.cli.main", *line]
    environment = {**os.environ, "PYTHONPATH": PACKAGE_ROOT, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        checkpoint, deadline = Path("runs/00000-lab/checkpoints/step-000005"), time.monotonic() + 60
        while not checkpoint.exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        second = ddsm(*line)
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGTERM)
        first.wait(timeout=60)
    assert first.returncode == 130  # it went on, and saved
    assert second.code == 2
    assert f"process {first.pid} on " in second.err
    steps = steps_logged(Path("runs/00000-lab"))
    assert steps == list(range(1, len(steps) + 1))


def test_samples_of_other_settings_mixed(trained: Path, ddsm: Ddsm) -> None:
    """C14: last weights and averaged ones, eta 0 and 1, in one folder."""
    a = ddsm("sample", "--seeds", "0-3", "--weights", "model").path
    b = ddsm("sample", "--seeds", "2-3", "--weights", "ema", "--set", "sampler.eta=1").path
    assert a.parent != b.parent
    assert len(list(b.parent.glob("seed-*.png"))) == 2
