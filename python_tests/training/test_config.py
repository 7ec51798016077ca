"""Settings: refusals, dict round trip, learning rate and decay."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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


def test_learning_rate():
    config = TrainConfig(steps=110, lr=1.0, warmup_steps=10, lr_final=0.2)
    assert [config.lr_at(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert config.lr_at(10) == pytest.approx(1.0)
    assert config.lr_at(60) == pytest.approx(0.6)  # half way: the mean of 1 and 0.2
    assert config.lr_at(110) == pytest.approx(0.2)
    assert TrainConfig(lr=3.0, warmup_steps=0).lr_at(0) == 3.0


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
