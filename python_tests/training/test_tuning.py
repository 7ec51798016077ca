"""Steps of a tuned run: width and timesteps against the strategy, gradients, exact resume."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import nn
from training.same_run import assert_same_run
from training.toy_net import SCHEDULE, StopAt, ToyNet, config, run_train

from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.io.checkpoint import load_checkpoint, newest_complete
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.training.config import TrainConfig, TuneConfig
from ddsm_ext.training.optimizer import make_optimizer
from ddsm_ext.training.sandwich import Sandwich, draw
from ddsm_ext.training.timesteps import LogNormal
from ddsm_ext.training.tuning import Routing

# Of the 50 timesteps of SCHEDULE: 0.25 at the 20 noisiest, 1 at the 5 next, 0.5 at the rest.
LOG_SNRS = SCHEDULE.log_snrs.tolist()
CUTS = tuple(0.5 * (LOG_SNRS[t] + LOG_SNRS[t - 1]) for t in (30, 25))
WIDTHS = (0.25, 1.0, 0.5)
SERVED = {0.25: range(30, 50), 1.0: range(25, 30), 0.5: range(0, 25)}
STRATEGY = Strategy(WIDTHS, CUTS)
X0 = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1


def tune(share: float = 0.25) -> TuneConfig:
    return TuneConfig(
        origin="00000-x", origin_step=0, origin_weights="a", widths=WIDTHS, cuts=CUTS,
        sandwich_share=share,
    )  # fmt: skip


def test_timesteps_are_those_that_the_strategy_gives_a_width() -> None:
    routing = Routing(STRATEGY, 0.0, SCHEDULE, seed=0)
    found = {width: t.tolist() for width, t in routing.timesteps.items()}
    assert found == {width: list(t) for width, t in SERVED.items()}


def test_a_strategy_may_return_to_a_width() -> None:
    routing = Routing(Strategy((0.5, 1.0, 0.5), CUTS), 0.0, SCHEDULE, seed=0)
    assert routing.timesteps[0.5].tolist() == [*range(0, 25), *range(30, 50)]


def test_widths_come_in_proportion_to_their_timesteps() -> None:
    count, share = 20_000, 0.1
    routing = Routing(STRATEGY, share, SCHEDULE, seed=5)
    steps = [routing.at(step) for step in range(count)]
    seen = Counter(None if step is None else step[0] for step in steps)
    wanted = {None: share, **{w: (1 - share) * len(t) / 50 for w, t in SERVED.items()}}
    assert seen.keys() == wanted.keys()
    for width, p in wanted.items():
        assert abs(seen[width] - count * p) < 5 * math.sqrt(count * p * (1 - p)), width


def test_a_step_is_a_function_of_seed_and_step() -> None:
    def widths(seed: int) -> list[float | None]:
        at = (Routing(STRATEGY, 0.3, SCHEDULE, seed).at(step) for step in range(50))
        return [None if step is None else step[0] for step in at]

    assert widths(1) == widths(1)
    assert widths(1) != widths(2)


@pytest.mark.parametrize("teacher", ["none", "origin"])
def test_a_step_trains_one_width_where_it_serves(teacher: str) -> None:
    """Gradients of every step by plain autograd in float64, from the same draws."""
    weight = 0.0 if teacher == "none" else 0.7
    cfg = TrainConfig(warmup_steps=0, grad_clip=None, distill_weight=weight, distill_balanced=True)
    origin = ToyNet(seed=4, dropout=0.0).eval().requires_grad_(False)
    routing = Routing(STRATEGY, 0.0, SCHEDULE, seed=0)
    trained = set()
    for step in range(20):
        net = ToyNet(dropout=0.0)
        sandwich = Sandwich(
            net, make_optimizer(net, cfg), SCHEDULE, cfg, routing=routing,
            teacher=origin if weight else None,
        )  # fmt: skip
        result = sandwich.step(X0, step)
        ((width, loss),) = result.losses.items()
        trained.add(width)

        plain, full = ToyNet(dropout=0.0).double(), ToyNet(seed=4, dropout=0.0).double()
        ((_, source),) = [routing.at(step)]
        t, noise = draw(X0, cfg, source, step, 0, 0)
        assert set(t.tolist()) <= set(SERVED[width])
        ab = SCHEDULE.log_alphas_bar[t].exp()[:, None, None, None]
        x_t = ab.sqrt() * X0.double() + (1 - ab).sqrt() * noise.double()
        y = plain(x_t, t, width)
        expected = nn.functional.mse_loss(y, noise.double())
        total = expected
        if weight and width != 1.0:
            distance = nn.functional.mse_loss(y, full(x_t, t, 1.0).detach())
            total = (expected + weight * distance) / (1 + weight)
        total.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        for mine, other in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-6)
    assert trained == set(WIDTHS)


@pytest.mark.parametrize(
    "changes",
    [{}, {"distill_weight": 0.5, "teacher": "ema"}, {"distill_weight": 0.5, "teacher": "origin"}],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, changes) -> None:
    cfg, options = config(lr_final=0.0, **changes), {"tune": tune()}
    if changes.get("teacher") == "origin":
        options["origin"] = ToyNet(seed=4)
    run_train(tmp_path / "whole", cfg, **options)
    interrupted = 0
    for step in (1, 2, 3):
        result = run_train(tmp_path / "parts", cfg, StopAt(step), **options)
        interrupted += result.interrupted
    assert interrupted >= 2
    assert run_train(tmp_path / "parts", cfg, ToyNet(seed=99), **options).finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_teacher_is_left_as_it_was(tmp_path) -> None:
    origin = ToyNet(seed=4)
    before = {name: t.clone() for name, t in origin.state_dict().items()}
    cfg = config(distill_weight=0.5, teacher="origin")
    run_train(tmp_path, cfg, tune=tune(), origin=origin)
    assert all(torch.equal(t, before[name]) for name, t in origin.state_dict().items())
    assert 1.0 in origin.widths
    assert set(origin.widths) == {1.0}


def test_other_widths_are_kept_by_sandwich_steps_alone(tmp_path) -> None:
    """Without them a constant width leaves the weights beyond its channels as they were."""
    narrow = {**tune(0.0).to_dict(), "widths": (0.5,), "cuts": ()}
    first = ToyNet().state_dict()["first.weight"]
    run_train(tmp_path / "alone", config(), tune=TuneConfig(**narrow))
    run_train(tmp_path / "shared", config(), tune=TuneConfig(**{**narrow, "sandwich_share": 0.5}))
    ends = {
        name: load_checkpoint(newest_complete(tmp_path / name)).tensors["model"]["first.weight"]
        for name in ("alone", "shared")
    }
    assert torch.equal(ends["alone"][4:], first[4:])
    assert not torch.equal(ends["alone"][:4], first[:4])
    assert not torch.equal(ends["shared"][4:], first[4:])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"distill_weight": 0.5}, "teacher is 'live' in a run that is tuned"),
        ({"distill_weight": 0.5, "teacher": "origin"}, "in a run that is not tuned"),
        ({"teacher": "ema", "t_importance": 0.5}, "t_importance is 0.5 in a run that is tuned"),
    ],
)
def test_what_a_tuned_run_cannot_do(tmp_path, changes, expected) -> None:
    with pytest.raises(ValueError, match=expected):
        run_train(tmp_path, config(**changes), tune=tune())
    assert not list(tmp_path.iterdir())


def test_another_strategy_does_not_resume(tmp_path) -> None:
    run_train(tmp_path, config(steps=6), tune=tune())
    for other in (tune(0.3), None):
        with pytest.raises(ValueError, match="was trained with tune"):
            run_train(tmp_path, config(steps=6), tune=other)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"sandwich_share": 1.5}, "sandwich_share is 1.5"),
        ({"origin": 3}, "origin is 3"),
        ({"origin_step": -1}, "origin_step is -1"),
        ({"widths": (1.0, 0.5)}, "2 widths and 0 cuts"),
        ({"cuts": (1.0,)}, "0 widths and 1 cuts"),
    ],
)
def test_bad_settings(values, expected) -> None:
    with pytest.raises(ValueError, match=expected):
        TuneConfig(**values)


def test_levels_are_those_of_the_usual_distribution() -> None:
    """Log-normal ones: all of a step at one width, over many steps as without a strategy."""
    schedule = make_schedule(DiffusionConfig(schedule="edm", parameterisation="edm"))
    strategy = Strategy((0.5, 1.0), (2.4,))  # at ln sigma -1.2, the middle
    routing = Routing(strategy, 0.0, schedule, 0, LogNormal(schedule, -1.2, 1.2))
    drawn, widths = [], []
    for step in range(400):
        width, source = routing.at(step)
        t = source.draw(8, torch.Generator().manual_seed(step))
        log_snr = schedule.log_snr(t)
        assert set(strategy.widths_for(log_snr.tolist())) == {width}
        assert source.factors(t) is None
        drawn.append(-0.5 * log_snr)
        widths.append(width)
    log_sigma = torch.cat(drawn)
    assert abs(log_sigma.mean().item() + 1.2) < 0.15
    assert abs(log_sigma.std().item() - 1.2) < 0.1
    assert abs(widths.count(0.5) - 200) < 50
