"""Averaged weights against the closed form."""

from __future__ import annotations

import pytest
import torch
from training.toy_net import ToyNet

from ddsm_ext.training.state import Ema


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
