"""Training of an autoencoder: loss by torch's own distributions, exact resume, kills, NaN."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from training.same_run import assert_same_run
from training.toy_autoencoder import (
    config,
    equal,
    needs_diffusers,
    poisoned,
    run_training,
    stop_at,
    toy_autoencoder,
    weights_of,
)
from training.toy_net import toy_data

from ddsm_ext.data.images import read_image
from ddsm_ext.data.pixels import from_uint8
from ddsm_ext.io.checkpoint import list_checkpoints, load_checkpoint, newest_complete
from ddsm_ext.io.files import read_jsonl
from ddsm_ext.training.autoencoder import AutoencoderSteps, divergence, moments, train_autoencoder
from ddsm_ext.training.autoencoder_config import AutoencoderConfig
from ddsm_ext.training.batches import Batch
from ddsm_ext.training.ema import Averages
from ddsm_ext.training.optimizer import make_optimizer
from ddsm_ext.training.session import NonFiniteError

pytestmark = needs_diffusers


@pytest.mark.parametrize(
    "values",
    [
        {"block_out_channels": (16,)},
        {"block_out_channels": (16,) * 5},
        {"block_out_channels": (16, 0)},
        {"block_out_channels": 16},
        {"block_out_channels": (16, 24)},
        {"latent_channels": 0},
        {"norm_groups": 0},
        {"attention": 1},
        {"kl_weight": -1e-6},
        {"layers_per_block": 0},
        {"lr": 0.0},
        {"autocast": "fp16"},
    ],
)
def test_bad_settings(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"AutoencoderConfig: {next(iter(values))} .*need"):
        AutoencoderConfig(**values)


def test_the_factor_is_that_of_the_halvings_and_divides_the_images() -> None:
    for channels, factor in (((16, 16), 2), ((16, 16, 16), 4), ((16,) * 4, 8)):
        made = AutoencoderConfig(block_out_channels=channels)
        assert made.factor == factor
        made.check_size(24)
    with pytest.raises(ValueError, match=r"images are 28x28 .* a factor of 8; need a multiple"):
        made.check_size(28)


def test_divergence_is_that_of_torchs_distributions() -> None:
    draw = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 5, 3, 4, 4, generator=draw, dtype=torch.float64)
    posterior = Normal(mean, (0.5 * logvar).exp())
    wanted = kl_divergence(posterior, Normal(0.0, 1.0)).sum((1, 2, 3))
    assert divergence(mean, logvar) == pytest.approx(wanted.numpy(), rel=1e-12)


def steps_of(net: Any, settings: AutoencoderConfig) -> AutoencoderSteps:
    optimizer, averages = make_optimizer(net, settings), Averages(net, settings)
    return AutoencoderSteps(net, optimizer, averages, settings, torch.device("cpu"))


def test_a_step_has_the_loss_of_its_parts() -> None:
    settings, net = config(kl_weight=0.25), toy_autoencoder()
    images = torch.from_numpy(toy_data().images[:4])
    x = from_uint8(images)
    with torch.no_grad():
        # an encoder that is sure draws its mean, whatever the noise
        net.quant_conv.weight[2:], net.quant_conv.bias[2:] = 0.0, -29.0
        mean, logvar = moments(net, x)
        kl = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum() / x.numel()
        error = (net.decode(mean).sample - x).abs().mean()
    done = steps_of(net, settings)(Batch(images), 0, False)
    assert done.applied
    assert done.figures["l1"] == pytest.approx(float(error), rel=1e-4)
    assert done.figures["kl"] == pytest.approx(float(kl), rel=1e-5)
    assert done.figures["loss"] == pytest.approx(float(error + 0.25 * kl), rel=1e-4)


def test_latents_are_drawn_anew_in_every_step() -> None:
    steps = steps_of(toy_autoencoder(), config(lr=1e-12))
    batch = Batch(torch.from_numpy(toy_data().images[:4]))
    errors = [steps(batch, step, False).figures["l1"] for step in (0, 0, 1)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)
    assert abs(errors[2] / errors[0] - 1) > 1e-4


@pytest.mark.parametrize("changes", [{}, {"autocast": "bf16", "lr_final": 0.3, "workers": 2}])
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole, parts, settings = toy_autoencoder(), toy_autoencoder(seed=9), config(**changes)
    run_training(tmp_path / "whole", settings, whole)
    for step in (4, 3):
        result = run_training(tmp_path / "parts", settings, stop_at(step, seed=step % 4))
        assert result.interrupted
        assert result.checkpoint == newest_complete(tmp_path / "parts")
    assert run_training(tmp_path / "parts", settings, parts).finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    # what is left in the network is the average
    assert equal(weights_of(whole), weights_of(parts))
    saved = load_checkpoint(newest_complete(tmp_path / "whole")).tensors
    assert equal(saved["ema"], weights_of(whole))
    assert not equal(saved["model"], weights_of(whole))
    assert not whole.training


_TRAIN = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from pathlib import Path
from training.toy_autoencoder import config, run_training
run_training(Path(sys.argv[1]), config(steps=60, checkpoint_every=5, log_every=1))
"""


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    settings, tests = config(steps=60, checkpoint_every=5, log_every=1), Path(__file__).parents[1]
    command = [sys.executable, "-c", _TRAIN, str(tmp_path / "killed"), str(tests)]
    job, log = subprocess.Popen(command), tmp_path / "killed" / "log.jsonl"
    while job.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 8):
        time.sleep(0.005)
    assert job.poll() is None
    job.kill()
    job.wait()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums depend on the number of threads
    try:
        assert run_training(tmp_path / "killed", settings).finished
        run_training(tmp_path / "whole", settings)
    finally:
        torch.set_num_threads(threads)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_steps_change_no_weight(tmp_path: Path, where: str, value: float) -> None:
    """Steps 6 to 9 are bad: the checkpoint of step 10 must equal that of step 6."""
    settings = config(steps=10, checkpoint_every=1, keep=10)
    run_training(tmp_path, settings, poisoned(range(6, 10), value, where))
    before, after = (
        load_checkpoint(tmp_path / "checkpoints" / f"step-{step:06d}").tensors for step in (6, 10)
    )
    assert before.keys() == after.keys() == {"model", "ema", "optim"}
    assert all(equal(before[group], after[group]) for group in before)
    assert read_jsonl(tmp_path / "log.jsonl")[-1]["skipped"] == 2


def test_five_in_a_row_stop_and_keep_the_last_good_checkpoint(tmp_path: Path) -> None:
    settings = config(steps=20)
    with pytest.raises(NonFiniteError, match=r"l1: nan.*step 12, not finite in 5 steps in a row"):
        run_training(tmp_path, settings, poisoned(range(8, 20), math.nan, "loss"))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000006", "step-000012"]
    good = {**load_checkpoint(list_checkpoints(tmp_path)[1]).tensors["model"]}
    assert all(bool(tensor.isfinite().all()) for tensor in good.values())
    assert run_training(tmp_path, settings).finished


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kl_weight": 1e-3}, r"with kl_weight=1e-06, now it is 0\.001; need .* another --out"),
        ({"steps": 99}, r"with steps=16 and a rate that falls .* or another --out"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    run_training(tmp_path, config())
    log = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match=said):
        run_training(tmp_path, config(**changes))
    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert run_training(tmp_path, config(log_every=9, workers=1)).step == 16


def test_other_images_are_refused(tmp_path: Path) -> None:
    run_training(tmp_path, config(steps=2))
    other = dataclasses.replace(toy_data(), digest="others")
    with pytest.raises(ValueError, match=r"trained on other images .* or another --out"):
        train_autoencoder(toy_autoencoder(), other, config(steps=2), tmp_path)


def test_pictures_are_of_the_average(tmp_path: Path) -> None:
    seen = []

    def picture(net: Any) -> Any:
        seen.append(weights_of(net))
        return np.full((4, 4, 1), 7 * len(seen), np.uint8)

    settings, net = config(sample_every=10), toy_autoencoder()
    run_training(tmp_path, settings, net, pictures={"made": picture})
    names = ["step-000010-made.png", "step-000016-made.png"]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == names
    assert read_image(tmp_path / "samples" / names[1]).max() == 14
    assert equal(seen[1], weights_of(net))
    assert json.dumps(read_jsonl(tmp_path / "log.jsonl")[-1]["step"]) == "16"
