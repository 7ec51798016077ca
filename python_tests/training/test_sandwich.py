"""The sandwich step against gradients computed by hand from the same draws."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn
from training.toy_net import ToyNet

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.training.config import TrainConfig
from ddsm_ext.training.sandwich import (
    Sandwich,
    draw,
    loss_weights,
    make_optimizer,
    widths_of_step,
)

SCHEDULE = make_schedule(DiffusionConfig())
X0 = torch.rand(6, 1, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_widths_of_a_step():
    config = TrainConfig(widths=(1.0, 0.8, 0.6, 0.4, 0.2), middle_widths=2)
    seen = set()
    for step in range(200):
        first, second, *middle = widths_of_step(config, step)
        assert (first, second, len(middle)) == (1.0, 0.2, 2)
        seen.add(frozenset(middle))
        assert len(set(middle)) == 2
    assert len(seen) == 3  # every pair of the three middle widths
    assert widths_of_step(TrainConfig(widths=(1.0, 0.5)), 0) == [1.0, 0.5]
    assert widths_of_step(TrainConfig(widths=(0.5,)), 0) == [0.5]
    assert len(widths_of_step(TrainConfig(middle_widths=9), 0)) == 4
    assert widths_of_step(TrainConfig(middle_widths=0), 0) == [1.0, 0.25]


def expected_gradients(config, step):
    """Sum over the widths of plain gradients of MSE (+ distance to the full prediction)."""
    net = ToyNet(dropout=0.0)
    total, losses, teacher = 0.0, {}, None
    for index, width in enumerate(widths_of_step(config, step)):
        t, noise = draw(X0, config, 1000, step, 0, 0 if config.shared_noise else index)
        ab = SCHEDULE.log_alphas_bar[t].exp().float()[:, None, None, None]
        y = net(ab.sqrt() * X0 + (1 - ab).sqrt() * noise, t, width)
        losses[width] = nn.functional.mse_loss(y, noise)
        total = total + losses[width]
        if teacher is None:
            teacher = y.detach()
        elif config.distill_weight:
            total = total + config.distill_weight * nn.functional.mse_loss(y, teacher)
    total.backward()
    return net, {width: loss.item() for width, loss in losses.items()}


@pytest.mark.parametrize(
    "changes", [{}, {"shared_noise": False}, {"distill_weight": 0.7, "middle_widths": 2}]
)
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_step_equals_plain_adam_on_the_summed_gradient(changes, clip):
    config = TrainConfig(warmup_steps=0, lr=1e-2, grad_clip=clip, **changes)
    reference, losses = expected_gradients(config, step=5)
    parameters = list(reference.parameters())
    norm = torch.cat([p.grad.flatten() for p in parameters]).norm().item()
    if clip is not None:
        for p in parameters:
            p.grad *= clip / (norm + 1e-6)
    torch.optim.Adam(parameters, lr=1e-2, fused=False, foreach=False).step()

    net = ToyNet(dropout=0.0)
    optimizer = make_optimizer(net, config)
    result = Sandwich(net, optimizer, SCHEDULE, config).step(X0, 5)
    assert result.applied
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    assert result.losses == pytest.approx(losses, rel=1e-5)
    for found, p in zip(net.parameters(), parameters, strict=True):
        torch.testing.assert_close(found, p, rtol=1e-4, atol=1e-6)


class Accumulates(ToyNet):
    """Adds its weight gradients into `p.grad` itself, as the kernels do."""

    def forward(self, x, t, width, accumulate_grad=False):
        assert accumulate_grad
        assert all(p.grad is not None for p in self.parameters())
        frozen = {name: p.detach().clone().requires_grad_() for name, p in self.named_parameters()}
        for name, p in self.named_parameters():
            frozen[name].register_hook(lambda gradient, p=p: p.grad.add_(gradient))
        plain = ToyNet(dropout=0.0)
        return torch.func.functional_call(plain, frozen, (x, t, width))


def test_accumulated_gradients_give_the_same_step():
    nets = []
    for cls, accumulate in ((ToyNet, False), (Accumulates, True)):
        config = TrainConfig(accumulate_grad=accumulate)
        net = cls(dropout=0.0)
        optimizer = make_optimizer(net, config)
        for step in range(3):
            result = Sandwich(net, optimizer, SCHEDULE, config).step(X0, step)
            assert result.applied
        nets.append(net)
    for first, second in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)


def test_min_snr_weights():
    """min(SNR, 5) / SNR for epsilon; 1 where the noise dominates, 5 / SNR where it does not."""
    config = TrainConfig(loss_weighting="min_snr")
    t = torch.tensor([0, 300, 999])
    ab = SCHEDULE.log_alphas_bar[t].exp()
    snr = ab / (1 - ab)
    found = {p: loss_weights(t, SCHEDULE, config, p) for p in ("epsilon", "x0", "v")}
    for index, ratio in enumerate(snr.tolist()):
        assert found["epsilon"][index].item() == pytest.approx(min(ratio, 5) / ratio, rel=1e-5)
        assert found["x0"][index].item() == pytest.approx(min(ratio, 5), rel=1e-5)
        assert found["v"][index].item() == pytest.approx(min(ratio, 5) / (ratio + 1), rel=1e-5)
    assert loss_weights(t, SCHEDULE, TrainConfig(), "epsilon").tolist() == [1, 1, 1]


def test_draws_are_standard_normal_and_uniform():
    t, noise = draw(torch.empty(4000, 1, 4, 4), TrainConfig(), 1000, 0, 0, 0)
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.var().item() - 1) < 0.03
    assert abs(t.double().mean().item() - 499.5) < 25
    assert (t.min() >= 0) & (t.max() <= 999)
    others = [draw(X0, TrainConfig(seed=s), 1000, *key)[1] for s, key in enumerate([(0, 0, 0)] * 2)]
    others += [draw(X0, TrainConfig(), 1000, *key)[1] for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({tuple(noise.flatten().tolist()) for noise in others}) == 5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_skipped_step_changes_nothing_at_all(value):
    config = TrainConfig()
    net = ToyNet()
    optimizer = make_optimizer(net, config)
    Sandwich(net, optimizer, SCHEDULE, config).step(X0, 0)
    weights = [p.detach().clone() for p in net.parameters()]
    moments = [v.clone() for state in optimizer.state.values() for v in state.values()]
    bad = X0.clone()
    bad[0, 0, 0, 0] = value
    called = []
    sandwich = Sandwich(net, optimizer, SCHEDULE, config)
    result = sandwich.step(bad, 1, on_applied=lambda: called.append(1))
    assert not result.applied
    assert called == []
    for old, p in zip(weights, net.parameters(), strict=True):
        assert torch.equal(old, p)
    now = [v for state in optimizer.state.values() for v in state.values()]
    assert all(torch.equal(old, new) for old, new in zip(moments, now, strict=True))


def test_network_without_parameters():
    with pytest.raises(ValueError, match="no parameters"):
        make_optimizer(nn.Identity(), TrainConfig())


_RANK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
from training.toy_net import ToyNet, config, run_train
rank = dist.get_rank()
result = run_train(Path(sys.argv[1]), config(steps=12), ToyNet(seed=rank))
assert result.finished
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_train_one_network(tmp_path):
    """Both ranks finish, rank 0 writes, and a second pair of processes resumes to the same end."""
    from ddsm_ext.io.checkpoint import list_checkpoints, load_checkpoint
    from ddsm_ext.io.files import read_jsonl

    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ends = []
    for name, again in (("a", False), ("b", False), ("b", True)):
        if again:  # drop the last checkpoint: the pair resumes from step 6
            newest = list_checkpoints(tmp_path / name)[-1]
            (newest / "state.json").write_text("{}")
        jobs = []
        for rank in range(2):
            world = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            environment = {**os.environ, **world, "MASTER_PORT": port}
            command = [sys.executable, "-c", _RANK, str(tmp_path / name), tests]
            jobs.append(subprocess.Popen(command, env=environment))
        assert [job.wait(timeout=120) for job in jobs] == [0, 0]
        ends.append(load_checkpoint(list_checkpoints(tmp_path / name)[-1]))
    for group, tensors in ends[0].tensors.items():
        for tensor_name, tensor in tensors.items():
            for other in ends[1:]:
                assert torch.equal(tensor, other.tensors[group][tensor_name])
    assert [row["step"] for row in read_jsonl(tmp_path / "b" / "log.jsonl")] == [4, 8, 12]


_AVERAGING_RANK = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
from training.toy_net import SCHEDULE, ToyNet
from ddsm_ext.training.config import TrainConfig
from ddsm_ext.training.sandwich import Sandwich, make_optimizer
X0 = torch.linspace(-1, 0.9, 150).view(6, 1, 5, 5)
config, rank = TrainConfig(widths=(1.0, 0.5), warmup_steps=0, grad_clip=None), dist.get_rank()
ends = []
for values in (1, 100, 10**6):
    net = ToyNet(dropout=0.0)
    shares = [ToyNet(dropout=0.0) for _ in range(2)]
    for r, share in enumerate(shares):  # what each rank has by itself, summed in float32
        Sandwich(share, make_optimizer(share, config), SCHEDULE, config, rank=r).step(X0 + r, 0)
    sandwich = Sandwich(
        net, make_optimizer(net, config), SCHEDULE, config, rank=rank, world_size=2,
        bucket_values=values,
    )
    result = sandwich.step(X0 + rank, 0, stop_wanted=rank == 1)
    assert result.applied and result.stop_wanted
    for mine, one, two in zip(net.parameters(), *(s.parameters() for s in shares), strict=True):
        assert torch.equal(mine.grad, (one.grad + two.grad) / 2), values
    ends.append(result.losses)
assert ends[0] == ends[1] == ends[2]
dist.destroy_process_group()
"""


def test_gradients_are_averaged_whatever_the_buckets():
    """Of one tensor, of a few, of all: the mean of the two ranks' own gradients, bit for bit."""
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    jobs = []
    for rank in range(2):
        world = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, "-c", _AVERAGING_RANK, tests]
        jobs.append(subprocess.Popen(command, env={**os.environ, **world, "MASTER_PORT": port}))
    assert [job.wait(timeout=120) for job in jobs] == [0, 0]
