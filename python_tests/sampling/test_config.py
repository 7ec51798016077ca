from __future__ import annotations

import pytest

from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.samplers import SAMPLERS


def test_round_trip() -> None:
    config = SamplerConfig("ddim", 20, eta=0.5, clip_denoised=False, spacing="trailing")
    assert SamplerConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"kind": "dimm"}, ValueError, "did you mean ddim"),
        ({"variance": "fixedlarge"}, ValueError, "did you mean fixed_large"),
        ({"spacing": "even"}, ValueError, "spacing is 'even'"),
        ({"dtype": "bf16"}, ValueError, "dtype is 'bf16'"),
        ({"steps": 0}, ValueError, "steps is 0; need at least 1"),
        ({"steps": 2.5}, TypeError, "steps is 2.5"),
        ({"steps": True}, TypeError, "steps is True"),
        ({"kind": "ddim", "eta": -0.1}, ValueError, "eta is -0.1"),
        ({"kind": "ddim", "eta": float("nan")}, ValueError, "eta is nan"),
        ({"kind": "ddim", "eta": "1"}, TypeError, "eta is '1'"),
        ({"kind": "ddpm", "eta": 1.0}, ValueError, "eta belongs to kind 'ddim'"),
        ({"clip_denoised": 1}, TypeError, "clip_denoised is 1"),
        ({"step": 5}, ValueError, "unknown key 'step'; did you mean steps"),
    ],
)
def test_bad_settings(settings: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        SamplerConfig.from_dict(settings)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sampler_without_eta_refuses_one(kind: str) -> None:
    if "eta" in SAMPLERS[kind].options:
        assert SamplerConfig(kind, eta=0.5).eta == 0.5
    else:
        with pytest.raises(ValueError, match=rf"eta is 0\.5 with kind '{kind}'; eta belongs to"):
            SamplerConfig(kind, eta=0.5)
