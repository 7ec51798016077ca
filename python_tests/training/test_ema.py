"""Averaged weights against the closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training.toy_net import ToyNet

from ddsm_ext.training.config import TrainConfig
from ddsm_ext.training.ema import Averages, Ema, profile_power


def test_closed_form_and_copied_buffers():
    """After weights 0, then k for k = 1..n: the average is sum (1 - d) d^(n - k) k."""
    net, decay, count = ToyNet(), 0.9, 20
    with torch.no_grad():
        net.first.weight.zero_()
    ema = Ema(net)
    for value in range(1, count + 1):
        with torch.no_grad():
            net.first.weight.fill_(value)
            net.calls.fill_(value)
        ema.update(net, decay)
    expected = sum((1 - decay) * decay ** (count - k) * k for k in range(1, count + 1))
    assert ema.tensors["first.weight"].flatten()[3].item() == pytest.approx(expected, rel=1e-6)
    assert ema.tensors["calls"].item() == count


def test_applied_in_place_and_taken_back():
    net = ToyNet()
    ema = Ema(net)
    with torch.no_grad():
        net.first.weight.add_(1.0)
    own, storage = net.first.weight.clone(), net.first.weight.data_ptr()

    def sample_and_fail():
        with ema.applied_to(net):
            assert not net.training
            assert torch.equal(net.first.weight, ema.tensors["first.weight"])
            assert net.first.weight.data_ptr() == storage
            raise KeyError

    with pytest.raises(KeyError):
        sample_and_fail()
    assert net.training
    assert torch.equal(net.first.weight, own)
    assert net.first.weight.data_ptr() == storage


@pytest.mark.parametrize(
    # arXiv 2312.02696, section 3.1: "gamma of 6.94 and 16.97 ... sigma_rel of 0.10 and 0.05"
    ("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)]
)  # fmt: skip
def test_powers_of_the_paper(length: float, gamma: float) -> None:
    assert round(profile_power(length), 2) == gamma


@pytest.mark.parametrize("length", [0.05, 0.1, 0.25])
def test_an_average_has_the_deviation_that_its_length_says(length: float) -> None:
    """The weight of each step is what the average has of weights that are 1 in that step alone."""
    count = 400
    net = torch.nn.Linear(count, 1, bias=False)
    averages = Averages(net, TrainConfig(), (length,))
    for step in range(count):
        with torch.no_grad():
            net.weight.zero_()
            net.weight[0, step] = 1.0
        averages.update(net, step)
    share = averages.tensors[f"ema-{length:g}"]["weight"][0].double().numpy()
    assert share.sum() == pytest.approx(1.0, abs=1e-5)
    times = np.arange(1, count + 1) / count
    mean = (share * times).sum()
    assert np.sqrt((share * (times - mean) ** 2).sum()) == pytest.approx(length, rel=0.02)
    assert [*averages.tensors] == ["ema", f"ema-{length:g}"]
