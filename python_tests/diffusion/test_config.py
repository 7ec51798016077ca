from __future__ import annotations

import math
import re
import subprocess
import sys
import warnings

import pytest

from ddsm_ext.diffusion.config import DiffusionConfig


def test_round_trip_and_defaults() -> None:
    config = DiffusionConfig(schedule="cosine", timesteps=64, parameterisation="v")
    assert DiffusionConfig.from_dict(config.to_dict()) == config
    assert DiffusionConfig.from_dict({}) == DiffusionConfig()
    assert DiffusionConfig().to_dict() == {
        "schedule": "linear",
        "timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "parameterisation": "epsilon",
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "rescale_timesteps": False,
    }


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"schedule": "cosin"}, ValueError, "did you mean cosine"),
        ({"schedule": 3}, ValueError, "need one of 'linear', 'cosine'"),
        ({"parameterisation": "eps"}, ValueError, "need one of 'epsilon', 'x0', 'v'"),
        ({"timesteps": 1}, ValueError, "timesteps is 1; need at least 2"),
        ({"timesteps": 10.0}, TypeError, "timesteps is 10.0"),
        ({"timesteps": True}, TypeError, "timesteps is True"),
        ({"beta_start": float("nan")}, ValueError, "beta_start is nan"),
        ({"beta_start": 0.0}, ValueError, "beta_start is 0.0"),
        ({"beta_end": 1.0}, ValueError, "beta_end is 1.0"),
        ({"beta_end": "x"}, TypeError, "beta_end is 'x'"),
        ({"beta_start": 0.5, "beta_end": 0.1}, ValueError, "need beta_start <= beta_end"),
        ({"sigma_min": 0}, ValueError, r"sigma_min is 0; need a number in [1e-6, 1e6]"),
        ({"sigma_max": math.inf}, ValueError, "sigma_max is inf"),
        ({"sigma_data": "1"}, TypeError, "sigma_data is '1'"),
        ({"sigma_min": 80}, ValueError, "sigma_min is 80, sigma_max is 80.0; need sigma_min <"),
        ({"timestep": 10}, ValueError, "unknown key 'timestep'; did you mean timesteps"),
    ],
)
def test_bad_settings(settings: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)) as caught:
        DiffusionConfig.from_dict(settings)
    assert "\n" not in str(caught.value)


def test_configs_and_strategies_import_no_torch() -> None:
    code = (
        "import sys\n"
        "import ddsm_ext.diffusion.config, ddsm_ext.sampling.config, ddsm_ext.sampling.strategy\n"
        "from ddsm_ext.sampling import Strategy, SamplerConfig\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def last_log_snr(betas: list[float]) -> float:
    """log(alpha-bar / (1 - alpha-bar)) after all steps (Ho et al. 2020, eq. 4)."""
    alpha_bar = math.prod(1 - beta for beta in betas)
    return math.log(alpha_bar / (1 - alpha_bar))


@pytest.mark.parametrize(
    "settings",
    [
        {"timesteps": 2},
        {"timesteps": 100},
        {"timesteps": 450},
        {"beta_end": 0.005},
        {"timesteps": 2000, "beta_end": 1e-3},
    ],
)
def test_linear_schedules_that_do_not_end_in_noise_are_warned_about(settings: dict) -> None:
    full = {**DiffusionConfig().to_dict(), **settings}
    first, last, steps = full["beta_start"], full["beta_end"], full["timesteps"]
    expected = last_log_snr([first + (last - first) * t / (steps - 1) for t in range(steps)])
    with pytest.warns(UserWarning, match=f"{steps} timesteps ends at log-SNR {expected:.2f}, "):
        DiffusionConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({"schedule": "edm", "sigma_max": 10.0}, -2 * math.log(10)),
        (
            {"schedule": "scaled_linear", "beta_end": 0.005},
            last_log_snr([(0.01 + (math.sqrt(0.005) - 0.01) * t / 999) ** 2 for t in range(1000)]),
        ),
    ],
)
def test_other_schedules_that_do_not_end_in_noise_are_warned_about(
    settings: dict, last: float
) -> None:
    with pytest.warns(UserWarning, match=f"1000 timesteps ends at log-SNR {last:.2f}, "):
        DiffusionConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"timesteps": 600},
        {"timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2},
        {"timesteps": 10**12},
        {"timesteps": 2, "schedule": "cosine"},
        {"timesteps": 100, "schedule": "cosine"},
        {"timesteps": 10, "schedule": "edm"},
        {"schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0155},
    ],
)
def test_a_schedule_that_ends_in_noise_is_not(settings: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DiffusionConfig(**settings)
