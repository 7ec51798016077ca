"""The sandwich step against gradients computed by hand from the same draws."""

from __future__ import annotations

import dataclasses
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
from ddsm_ext.training.optimizer import make_optimizer
from ddsm_ext.training.sandwich import Sandwich, draw, widths_of_step
from ddsm_ext.training.timesteps import ErrorTable, Uniform, Weighted

ALL = Uniform(1000)
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


def test_middle_widths_by_budget():
    """A budget from .04 to 1, the costs of 0.2 and 1, falls nearest to .64, .36 or .16."""
    config = TrainConfig(widths=(1.0, 0.8, 0.6, 0.4, 0.2), middle_choice="budget")
    count = 5000
    seen = [widths_of_step(config, step) for step in range(count)]
    assert seen[:50] == [widths_of_step(config, step) for step in range(50)]
    assert {tuple(widths[:2]) for widths in seen} == {(1.0, 0.2)}
    borders = [1.0, 0.50, 0.26, 0.04]  # half way between the costs
    for width, high, low in zip((0.8, 0.6, 0.4), borders, borders[1:], strict=False):
        p = (high - low) / 0.96
        found = sum(widths[2] == width for widths in seen)
        assert abs(found - count * p) < 5 * math.sqrt(count * p * (1 - p)), width


def test_several_middle_widths_by_budget_are_distinct():
    config = TrainConfig(widths=(1.0, 0.8, 0.6, 0.4, 0.2), middle_choice="budget", middle_widths=2)
    seen = {tuple(widths_of_step(config, step)[2:]) for step in range(300)}
    assert all(len(set(pair)) == 2 for pair in seen)
    assert {frozenset(pair) for pair in seen} == {
        frozenset(pair) for pair in ((0.8, 0.6), (0.8, 0.4), (0.6, 0.4))
    }
    other = dataclasses.replace(config, seed=1)
    assert [widths_of_step(config, s) for s in range(20)] != [
        widths_of_step(other, s) for s in range(20)
    ]


def expected_gradients(config, step):
    """Sum over the widths of plain gradients of MSE (+ distance to the full prediction)."""
    net = ToyNet(dropout=0.0)
    total, losses, teacher = 0.0, {}, None
    for index, width in enumerate(widths_of_step(config, step)):
        t, noise = draw(X0, config, ALL, step, 0, 0 if config.shared_noise else index)
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


def doubles(seed=0):
    """A toy network in float64."""
    return ToyNet(seed=seed, dropout=0.0).double()


def noisy(source, config, step, index):
    """Timesteps, noisy images and noise of a draw, in float64."""
    t, noise = draw(X0, config, source, step, 0, index)
    ab = SCHEDULE.log_alphas_bar[t].exp()[:, None, None, None]
    return t, ab.sqrt() * X0.double() + (1 - ab).sqrt() * noise.double(), noise.double()


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 2.0, 3.0)])
@pytest.mark.parametrize(("taught", "shared"), [("live", True), ("ema", True), ("ema", False)])
def test_gradients_of_the_recipes(balanced, weights, taught, shared):
    """sum over widths of weight (loss + w d) / (1 + w), by plain autograd in float64."""
    w = 0.7
    config = TrainConfig(
        distill_weight=w, distill_balanced=balanced, width_weights=weights, teacher=taught,
        shared_noise=shared, grad_clip=None, warmup_steps=0, middle_widths=2,
    )  # fmt: skip
    plain, teacher = doubles(), doubles(0 if taught == "live" else 4)
    total, losses = 0.0, {}
    for index, width in enumerate(widths_of_step(config, 5)):
        t, x_t, noise = noisy(ALL, config, 5, 0 if shared else index)
        y = plain(x_t, t, width)
        loss = nn.functional.mse_loss(y, noise)
        losses[width] = loss.item()
        if width != 1.0:
            distance = nn.functional.mse_loss(y, teacher(x_t, t, 1.0).detach())
            loss = (loss + w * distance) / (1 + w if balanced else 1)
        total = total + (1.0 if weights is None else weights[config.widths.index(width)]) * loss
    total.backward()

    net = ToyNet(dropout=0.0)
    held = None if taught == "live" else ToyNet(seed=4, dropout=0.0).eval().requires_grad_(False)
    sandwich = Sandwich(net, make_optimizer(net, config), SCHEDULE, config, teacher=held)
    assert sandwich.step(X0, 5).losses == pytest.approx(losses, rel=1e-5)
    for found, p in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad.double(), p.grad, rtol=1e-4, atol=1e-6)
    if held is not None:
        assert len(held.widths) == (1 if shared else 3)  # asked once for a noise


def test_gradients_with_timesteps_by_error():
    """Each narrow width at its own t, its loss divided by T p(t); the errors are then known."""
    config = TrainConfig(
        widths=(1.0, 0.5, 0.25), teacher="ema", t_importance=0.5, distill_weight=0.7,
        grad_clip=None, warmup_steps=0,
    )  # fmt: skip
    errors = ErrorTable(config.widths[1:], 1000)
    seen = errors.none_seen()
    stream = torch.Generator().manual_seed(1)
    for width in config.widths[1:]:
        errors.see(seen, width, torch.arange(1000), torch.rand(1000, generator=stream))
    errors.add(seen)
    before = errors.totals.clone()

    plain, teacher, total, wanted = doubles(), doubles(4), 0.0, before.clone()
    for index, width in enumerate(widths_of_step(config, 5)):
        if index == 0:
            t, x_t, noise = noisy(ALL, config, 5, 0)
            total = nn.functional.mse_loss(plain(x_t, t, 1.0), noise)
            continue
        p = errors.probabilities(width, 0.5)
        t, x_t, noise = noisy(Weighted(p), config, 5, index)
        y = plain(x_t, t, width)
        per_image = (y - noise).square().mean((1, 2, 3))
        distances = (y - teacher(x_t, t, 1.0).detach()).square().mean((1, 2, 3))
        total = total + ((per_image + 0.7 * distances) / (1000 * p[t])).mean()
        row = config.widths[1:].index(width)
        wanted[:, row] *= 0.99
        for i, distance in zip(t.tolist(), distances.tolist(), strict=True):
            wanted[:, row, i * 16 // 1000] += torch.tensor([distance, 1.0], dtype=torch.float64)
    total.backward()

    net = ToyNet(dropout=0.0)
    held = ToyNet(seed=4, dropout=0.0).eval().requires_grad_(False)
    sandwich = Sandwich(
        net, make_optimizer(net, config), SCHEDULE, config, teacher=held, errors=errors
    )
    assert sandwich.step(X0, 5).applied
    for found, p in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad.double(), p.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(errors.totals, wanted, rtol=1e-5, atol=1e-8)


def test_timesteps_by_error_change_no_expectation():
    """Over many steps the mean loss at a narrow width is that of uniform timesteps."""
    uniform = TrainConfig(widths=(1.0, 0.5), teacher="ema", shared_noise=False)
    steered = TrainConfig(widths=(1.0, 0.5), teacher="ema", t_importance=0.8)
    x0 = torch.rand(64, 1, 5, 5, generator=torch.Generator().manual_seed(3)) * 2 - 1
    errors = ErrorTable((0.5,), 1000)
    seen = errors.none_seen()
    errors.see(seen, 0.5, torch.arange(1000), torch.linspace(0.1, 3, 1000))
    errors.add(seen)
    means = []
    for config, table in ((uniform, None), (steered, errors)):
        net = ToyNet(dropout=0.0)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        held = ToyNet(seed=4, dropout=0.0).eval().requires_grad_(False)
        sandwich = Sandwich(net, optimizer, SCHEDULE, config, teacher=held, errors=table)
        sandwich._apply = lambda step: None
        losses = torch.tensor([sandwich.step(x0, step).losses[0.5] for step in range(150)])
        means.append((losses.mean().item(), losses.std().item() / math.sqrt(150)))
    (one, spread_one), (two, spread_two) = means
    assert abs(one - two) < 5 * math.hypot(spread_one, spread_two)


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


def test_draws_are_standard_normal_and_uniform():
    t, noise = draw(torch.empty(4000, 1, 4, 4), TrainConfig(), ALL, 0, 0, 0)
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.var().item() - 1) < 0.03
    assert abs(t.double().mean().item() - 499.5) < 25
    assert (t.min() >= 0) & (t.max() <= 999)
    others = [draw(X0, TrainConfig(seed=s), ALL, *key)[1] for s, key in enumerate([(0, 0, 0)] * 2)]
    others += [draw(X0, TrainConfig(), ALL, *key)[1] for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({tuple(noise.flatten().tolist()) for noise in others}) == 5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_skipped_step_changes_nothing_at_all(value):
    config = TrainConfig(teacher="ema", t_importance=0.5)
    net = ToyNet()
    optimizer = make_optimizer(net, config)
    Sandwich(net, optimizer, SCHEDULE, config).step(X0, 0)
    weights = [p.detach().clone() for p in net.parameters()]
    moments = [v.clone() for state in optimizer.state.values() for v in state.values()]
    errors = ErrorTable(config.widths[1:], 1000)
    held = ToyNet().eval().requires_grad_(False)
    bad = X0.clone()
    bad[0, 0, 0, 0] = value
    called = []
    sandwich = Sandwich(net, optimizer, SCHEDULE, config, teacher=held, errors=errors)
    result = sandwich.step(bad, 1, on_applied=lambda: called.append(1))
    assert not result.applied
    assert torch.equal(errors.totals, errors.none_seen())
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
result = run_train(Path(sys.argv[1]), config(steps=12, CHANGES), ToyNet(seed=rank))
assert result.finished
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("changes", ["", "teacher='ema', t_importance=0.5"])
def test_two_ranks_train_one_network(tmp_path, changes):
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
            code = _RANK.replace("CHANGES", changes)
            command = [sys.executable, "-c", code, str(tmp_path / name), tests]
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
from ddsm_ext.training.optimizer import make_optimizer
from ddsm_ext.training.sandwich import Sandwich
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
