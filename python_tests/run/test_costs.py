"""Times of the widths, measured with a clock that the test turns; MACs as published."""

from __future__ import annotations

import pytest
import torch

from ddsm_ext.graph import parameter_count
from ddsm_ext.models.families import preset
from ddsm_ext.run import costs
from ddsm_ext.run.config import configure
from ddsm_ext.run.costs import (
    check_memory,
    conditions,
    estimate_scores,
    estimate_training,
    images_at_once,
    macs_table,
    measure_ms,
)
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.cost import CostTable


class Clock:
    """A clock that only runs while a step does."""

    def __init__(self, seconds):
        self.now, self.seconds, self.calls = 0.0, seconds, []

    def __call__(self):
        return self.now

    def step(self, width):
        self.now += self.seconds(width, len(self.calls))
        self.calls.append(width)


def test_median_of_interleaved_rounds():
    # 8 images a step; call number n of a width costs n ms more, so medians are known
    clock = Clock(lambda width, n: (100 * width + n) / 1000)
    table = measure_ms(
        clock.step, (1.0, 0.5), batch=8, rounds=3, warmup_rounds=1, clock=clock, conditions={"a": 1}
    )
    # rounds begin at each width in turn: 1 .5 | .5 1 | 1 .5 | .5 1
    assert clock.calls == [1.0, 0.5, 0.5, 1.0, 1.0, 0.5, 0.5, 1.0]
    assert table.costs[1.0] == pytest.approx((100 + 4) / 8)
    assert table.costs[0.5] == pytest.approx((50 + 5) / 8)
    assert table.spread[1.0]["min_ms"] == pytest.approx((100 + 3) / 8)
    assert table.spread[0.5]["iqr_ms"] == pytest.approx(2 / 8)
    assert table.spread[0.5]["rounds"] == 3
    assert table.unit == "ms"
    assert table.conditions["a"] == 1
    assert table.conditions["date"].endswith("+00:00")


def test_an_outlier_does_not_move_the_median():
    clock = Clock(lambda width, n: 5.0 if n == 7 else 0.010)
    table = measure_ms(clock.step, (1.0,), batch=1, rounds=9, warmup_rounds=0, clock=clock)
    assert table.costs[1.0] == pytest.approx(10.0)


def test_progress_and_refusals():
    clock, told = Clock(lambda width, n: 0.001), []
    measure_ms(
        clock.step,
        (1.0,),
        batch=1,
        rounds=2,
        warmup_rounds=1,
        clock=clock,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    for bad in ({"widths": ()}, {"rounds": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="need at least 1 width"):
            measure_ms(clock.step, **{"widths": (1.0,), "batch": 1, **bad})
    with pytest.raises(ValueError, match="need a width in"):
        # a clock that stands still measures nothing
        measure_ms(lambda width: None, (1.0,), batch=1, clock=lambda: 0.0)


def test_saved_and_loaded(tmp_path):
    clock = Clock(lambda width, n: width / 100)
    where = conditions(batch=4, dtype="float32", device="cpu", network="abc")
    assert {"machine", "cpu", "gpu", "torch", "threads", "batch", "dtype"} <= set(where)
    table = measure_ms(clock.step, (1.0, 0.5), batch=4, clock=clock, conditions=where)
    path = tmp_path / "cost_table.json"
    table.save(path)
    found = CostTable.load(path)
    found.check_conditions(where)
    assert found == table


def test_an_estimate_of_scores_adds_up_the_steps_of_all_samples():
    config = configure("digits", sampler={"steps": 4})
    full, half = (macs_table(config.model, (1.0, 0.5)).costs[w] for w in (1.0, 0.5))
    strategies = [Strategy.constant(1.0), Strategy.constant(0.5)]
    found = estimate_scores(config, strategies, images=30)
    assert found.macs == 30 * 4 * (full + half)
    assert found.seconds > 0


def test_macs_of_the_cifar10_network():
    # shared/design/1-ddsm.md, MMACs a step at the four widths, with the attention products
    table = macs_table(preset("cifar10"), (1.0, 0.75, 0.5, 0.25))
    assert table.unit == "macs"
    published = (6221.9, 3532.6, 1599.2, 421.7)
    assert [cost / 1e6 for cost in table.costs.values()] == pytest.approx(published, abs=0.05)


def test_more_than_the_memory_is_refused(monkeypatch):
    network = preset("cifar10")
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(costs, "memory_bytes", lambda: 10**9)
    # 35.7 million float32 and 4.7 MB an image; in training 5 copies and 38 MB
    check_memory(network, 300, cpu, "x")
    check_memory(network, 30, cpu, "x", copies=5)
    check_memory(network, 10**6, gpu, "x", copies=5)  # which is the GPU's to say
    for batch, copies in ((500, 0), (60, 5)):
        with pytest.raises(ValueError, match=f"^x is {batch}, .* there are 1; need a smaller"):
            check_memory(network, batch, cpu, "x", copies=copies)
    monkeypatch.setattr(costs, "memory_bytes", lambda: 10**7)
    with pytest.raises(ValueError, match="35,746,307 parameters"):
        check_memory(network, 1, gpu, "x")


def test_an_estimate_builds_no_network_that_is_too_large():
    huge = configure("digits", model={"ch": 20_000, "groups": 8})  # a thousand GB
    takes = estimate_training(huge)
    assert takes.n_bytes > 1e12
    assert takes.seconds > 0


def test_memory_counts_averages_parts_of_batches_and_guided_halves() -> None:
    small = configure("adm-digits", train={"batch_size": 512})
    plain = estimate_training(small).n_bytes
    weights = 4 * parameter_count(small.model)
    more = configure("adm-digits", train={"batch_size": 512, "ema_lengths": [0.05, 0.1]})
    assert estimate_training(more).n_bytes == pytest.approx(plain + 2 * weights)
    parts = configure("adm-digits", train={"batch_size": 512, "micro_batches": 4})
    expected = 5 * weights + (plain - 5 * weights) / 4
    assert estimate_training(parts).n_bytes == pytest.approx(expected)
    guided = configure("adm-digits", sampler={"guidance": 2.0})
    assert images_at_once(small, 8) == 8
    assert images_at_once(guided, 8) == 16
    weak = configure("adm-digits", sampler={"guidance": 2.0, "guidance_widths": [0.5]})
    assert images_at_once(weak, 8) == 8


def test_scores_of_guided_images_take_the_memory_of_two_an_image() -> None:
    one, two, guided = (
        estimate_scores(
            configure("adm-digits", **more), [Strategy.constant(1.0)], images=30
        ).n_bytes
        for more in (
            {"eval": {"batch_size": 100}},
            {"eval": {"batch_size": 200}},
            {"eval": {"batch_size": 100}, "sampler": {"guidance": 2.0}},
        )
    )
    assert one < two == guided


def test_tuning_is_estimated_by_the_levels_that_it_trains() -> None:
    """Half of EDM's levels lie above log(sigma) = -1.2, a log-SNR of 2.4 below."""
    model = {"ch": 16, "groups": 4, "num_res_blocks": 1, "widths": (1.0, 0.5)}
    strategy = Strategy((1.0, 0.5), (2.4,))
    macs = {}
    for chosen in (strategy, Strategy.constant(1.0), Strategy.constant(0.5)):
        tune = {"origin": "x", "widths": chosen.widths, "cuts": chosen.cuts, "sandwich_share": 0.0}
        config = configure("edm-cifar10-vp", model=model, tune=tune)
        macs[chosen.widths] = estimate_training(config).macs
    mean = (macs[(1.0,)] + macs[(0.5,)]) / 2
    assert macs[(1.0, 0.5)] == pytest.approx(mean, rel=0.02)
