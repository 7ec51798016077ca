"""Settings: refusals, dict round trip, learning rate and decay."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from ddsm_ext.data.config import DataConfig
from ddsm_ext.training.config import TrainConfig


@pytest.mark.parametrize("cls", [DataConfig, TrainConfig])
def test_round_trip_through_json(cls):
    config = cls()
    assert cls.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_settings_get_a_hint():
    with pytest.raises(ValueError, match="unknown key 'batchsize'; did you mean batch_size"):
        TrainConfig.from_dict({"batchsize": 3})
    with pytest.raises(ValueError, match="known: source"):
        DataConfig.from_dict({"zzz": 3})


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"steps": 1.5},
        {"steps": True},
        {"batch_size": -1},
        {"lr": 0},
        {"lr": float("nan")},
        {"lr": "1"},
        {"widths": ()},
        {"widths": (0.0, 1.0)},
        {"widths": (1.0, 1.5)},
        {"widths": (0.5, 0.5)},
        {"widths": 1.0},
        {"grad_clip": 0},
        {"grad_clip": float("inf")},
        {"ema_decay": 1.1},
        {"betas": (0.9, 1.0)},
        {"betas": (0.9,)},
        {"optimizer": "sgd"},
        {"autocast": "fp16"},
        {"loss_weighting": "snr"},
        {"distill_weight": -1},
        {"distill_weight": 1.0, "shared_noise": False},
        {"keep": 0},
        {"max_bad_steps": 0},
        {"seed": -1},
        {"start_from": 3},
        {"width_weights": (1, 1)},
        {"width_weights": (1, 1, -1, 1)},
        {"width_weights": (0, 0, 0, 0)},
        {"width_weights": 1.0},
        {"middle_choice": "cost"},
        {"teacher": "student"},
        {"t_importance": 1.0, "teacher": "ema"},
        {"t_importance": 0.5},
        {"extensions": ((1, 2),)},
        {"extensions": ((5, 2000, 1e-3),)},
        {"extensions": ((7, 6, 1e-3),)},
        {"extensions": ((6, 6, 0.0),)},
        {"extensions": ((9, 9, 1e-3), (5, 12, 1e-3))},
        {"extensions": 3},
    ],
)
def test_bad_training_settings(values):
    with pytest.raises(ValueError, match=rf"TrainConfig: {next(iter(values))} is .*need"):
        TrainConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"source": ""},
        {"image_size": 3},
        {"channels": 4},
        {"split": "val"},
        {"held_out": 1.0},
        {"flip": "yes"},
        {"limit": 0},
        {"cache": 1},
    ],
)
def test_bad_data_settings(values):
    with pytest.raises(ValueError, match=rf"DataConfig: {next(iter(values))} is .*need"):
        DataConfig(**values)


def test_widths_are_sorted_and_the_largest_comes_first():
    assert TrainConfig(widths=(0.25, 1, 0.5)).widths == (1.0, 0.5, 0.25)


def test_weights_of_widths_are_sorted_with_them():
    config = TrainConfig(widths=(0.25, 1, 0.5), width_weights=(3, 1, 2))
    assert config.width_weights == (1, 2, 3)
    assert [config.weight_of(w) for w in (0.25, 0.5, 1.0)] == [3, 2, 1]
    assert config.weight_of(0.6) == TrainConfig().weight_of(0.5) == 1
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_learning_rate():
    config = TrainConfig(steps=110, lr=1.0, warmup_steps=10, lr_final=0.2)
    assert [config.lr_at(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert config.lr_at(10) == pytest.approx(1.0)
    assert config.lr_at(60) == pytest.approx(0.6)  # half way: the mean of 1 and 0.2
    assert config.lr_at(110) == pytest.approx(0.2)
    assert TrainConfig(lr=3.0, warmup_steps=0).lr_at(0) == 3.0


def torchs_cosine(high, low, steps):
    """Rates of `steps` steps by torch's scheduler, which reaches `low` after the last one."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=high)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=low)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_learning_rate_falls_as_torchs_cosine(final):
    config = TrainConfig(steps=40, lr=3e-3, warmup_steps=10, lr_final=final)
    found = [config.lr_at(step) for step in range(10, 40)]
    assert found == pytest.approx(torchs_cosine(3e-3, 3e-3 * final, 30), rel=1e-9, abs=1e-12)


def test_learning_rate_of_extensions():
    """Each restart is a cosine of its own; the steps before it keep their rates."""
    made = TrainConfig(steps=40, lr=3e-3, warmup_steps=10, lr_final=0.1)
    cut = made.extended(30, 60, lr=2e-3)
    twice = cut.extended(60, 80)
    assert [cut.lr_at(s) for s in range(30)] == [made.lr_at(s) for s in range(30)]
    expected = torchs_cosine(2e-3, 3e-4, 30)
    assert [cut.lr_at(s) for s in range(30, 60)] == pytest.approx(expected, rel=1e-9)
    assert [twice.lr_at(s) for s in range(60)] == [cut.lr_at(s) for s in range(60)]
    expected = torchs_cosine(1.5e-3, 3e-4, 20)
    assert [twice.lr_at(s) for s in range(60, 80)] == pytest.approx(expected, rel=1e-9)
    assert twice.steps == 80
    assert TrainConfig.from_dict(json.loads(json.dumps(twice.to_dict()))) == twice


def test_an_extension_goes_on_at_the_rate_of_the_schedule_or_at_half():
    made = TrainConfig(steps=110, lr=1.0, warmup_steps=10, lr_final=0.0)
    assert made.extended(60, 200).lr_at(60) == pytest.approx(0.5)
    assert made.extended(35, 200).lr_at(35) == pytest.approx(made.lr_at(35))  # 0.85
    assert made.extended(110, 200).lr_at(110) == 0.5
    early = made.extended(5, 200)
    assert [early.lr_at(s) for s in range(11)] == [made.lr_at(s) for s in range(11)]
    constant = TrainConfig(steps=20, lr=1.0, warmup_steps=0).extended(20, 40)
    assert {constant.lr_at(s) for s in range(40)} == {1.0}
    with pytest.raises(ValueError, match=r"^extend: steps is 110, the run has 110; need more"):
        made.extended(110, 110)


@pytest.mark.parametrize("final", [1.0, 0.5])
def test_an_extension_below_the_final_rate_stays_at_its_own(final):
    made = TrainConfig(steps=100, lr=4e-4, warmup_steps=0, lr_final=final)
    longer = made.extended(100, 200, lr=4e-5)
    assert [longer.lr_at(s) for s in range(100)] == [made.lr_at(s) for s in range(100)]
    assert {longer.lr_at(s) for s in range(100, 200)} == {4e-5}


def test_an_extension_above_the_constant_rate_falls_to_it_by_its_last_step():
    made = TrainConfig(steps=40, lr=1e-3, warmup_steps=0)
    raised = made.extended(40, 60, lr=4e-3)
    found = [raised.lr_at(step) for step in range(40, 60)]
    assert found == pytest.approx(torchs_cosine(4e-3, 1e-3, 20), rel=1e-9)
    # the same rates need the same last step
    longer = dataclasses.replace(raised, steps=80)
    assert raised.falls
    assert not longer.continues(raised, 50)
    lowered = made.extended(40, 60, lr=1e-4)
    assert not lowered.falls
    assert dataclasses.replace(lowered, steps=80).continues(lowered, 50)


def test_what_a_checkpoint_leads_to():
    made = TrainConfig(steps=40, lr_final=0.0)
    longer = made.extended(40, 60)
    assert longer.continues(made, 40)
    assert longer.continues(made, 32)
    assert longer.continues(longer, 50)
    assert not longer.continues(made, 41)
    assert not made.continues(longer, 50)
    assert not longer.continues(TrainConfig(steps=50, lr_final=0.0), 40)
    assert not longer.continues(made.extended(30, 60), 40)
    assert not TrainConfig(steps=60, lr_final=0.0).continues(made, 40)
    assert TrainConfig(steps=60).continues(TrainConfig(steps=40), 40)


def test_decay_ramps_up():
    config = TrainConfig(ema_decay=0.99)
    assert [config.ema_decay_at(step) for step in (0, 90)] == [0.1, 0.91]
    assert config.ema_decay_at(10_000) == 0.99
    assert TrainConfig(ema_decay=0.99, ema_ramp=False).ema_decay_at(0) == 0.99


def test_flips_by_default_on_all_but_digits():
    assert not DataConfig().flips
    assert DataConfig(source="folder").flips
    assert not DataConfig(source="folder", flip=False).flips
    assert DataConfig(flip=True).flips


def test_settings_load_no_torch():
    code = "import sys, ddsm_ext.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
