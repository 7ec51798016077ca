"""What a step's batch is beside its images: labels that all widths see, and parts of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from training.toy_net import ToyNet

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.training.config import TrainConfig
from ddsm_ext.training.optimizer import make_optimizer
from ddsm_ext.training.sandwich import Sandwich, widths_of_step

SCHEDULE = make_schedule(DiffusionConfig())
X0 = torch.rand(6, 1, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1


class LabelledNet(nn.Module):
    """Predicts a weight a label, and notes what it was called with."""

    def __init__(self, labels):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(labels))
        self.seen = []

    def forward(self, x, t, width, y):
        self.seen.append((width, y))
        return self.weight[y][:, None, None, None] + 0.0 * x


def test_every_width_sees_the_same_labels():
    net, config = LabelledNet(4), TrainConfig(middle_widths=2, shared_noise=False)
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    Sandwich(net, make_optimizer(net, config), SCHEDULE, config).step(X0, 3, labels)
    assert [width for width, _ in net.seen] == widths_of_step(config, 3)
    assert all(torch.equal(y, labels) for _, y in net.seen)


def test_a_share_of_the_labels_is_dropped():
    """The null label alone stands in their place, for all widths of a step alike."""
    config = TrainConfig(label_dropout=0.3, lr=1e-6)
    x0, labels, dropped = X0[:1].expand(500, 1, 5, 5), torch.arange(500) % 4, []
    for step in range(4):
        net = LabelledNet(5)
        sandwich = Sandwich(net, make_optimizer(net, config), SCHEDULE, config, null_label=4)
        sandwich.step(x0, step, labels)
        (_, first), *others = net.seen
        assert all(torch.equal(y, first) for _, y in others)
        dropped.append(first == 4)
        assert torch.equal(first[~dropped[-1]], labels[~dropped[-1]])
    count = int(torch.stack(dropped).sum())
    assert abs(count - 600) < 5 * math.sqrt(2000 * 0.3 * 0.7)
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize(("share", "kept"), [(0.0, 6), (1.0, 0)])
def test_no_or_all_labels_are_dropped(share, kept):
    net, config = LabelledNet(3), TrainConfig(label_dropout=share)
    sandwich = Sandwich(net, make_optimizer(net, config), SCHEDULE, config, null_label=2)
    sandwich.step(X0, 0, torch.zeros(6, dtype=torch.int64))
    assert int((net.seen[0][1] == 0).sum()) == kept


@pytest.mark.parametrize(
    "changes",
    [{}, {"distill_weight": 0.5}, {"distill_weight": 0.5, "teacher": "ema", "shared_noise": False}],
)
@pytest.mark.parametrize("parts", [2, 4, 6])
def test_a_batch_in_parts_gives_the_same_step(changes, parts):
    """Of sizes that differ by one, too, up to the order of sums."""
    found = []
    for count in (1, parts):
        net, teacher = ToyNet(dropout=0.0), ToyNet(seed=1, dropout=0.0).eval()
        config = TrainConfig(micro_batches=count, middle_widths=2, batch_size=6, **changes)
        sandwich = Sandwich(
            net, make_optimizer(net, config), SCHEDULE, config,
            teacher=teacher if "teacher" in changes else None,
        )  # fmt: skip
        net.widths.clear()
        result = sandwich.step(X0, 5)
        assert len(net.widths) == 4 * count
        found.append((result, [p.grad.clone() for p in net.parameters()]))
    (one, whole), (other, summed) = found
    assert other.losses == pytest.approx(one.losses, rel=1e-5)
    torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-7)
