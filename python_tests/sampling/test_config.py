from __future__ import annotations

import pytest

from ddsm_ext.sampling.config import SPACINGS, SamplerConfig, unsaid
from ddsm_ext.sampling.samplers import SAMPLERS

# A value other than the default of every setting that belongs to some kinds or spacings
OF_KINDS = {
    "eta": 0.5,
    "order": 3,
    "form": "noise",
    "variant": None,  # it depends on the kind
    "s_churn": 4.0,
    "s_min": 0.1,
    "s_max": 9.0,
    "s_noise": 1.01,
    "restart_on_width_change": True,
}
OF_SPACINGS = {"steps_offset": 1, "sigma_min": 0.1, "sigma_max": 9.0, "rho": 5.0}


def test_round_trip() -> None:
    for config in (
        SamplerConfig("ddim", 20, eta=0.5, clip_denoised=False, spacing="trailing"),
        SamplerConfig("heun", 20, spacing="karras", rho=5, sigma_max=50.0, s_churn=20.0),
        SamplerConfig("unipc", 20, order=3, variant="bh1", final="sigma_min"),
    ):
        assert SamplerConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"kind": "dimm"}, ValueError, "did you mean ddim"),
        ({"variance": "fixedlarge"}, ValueError, "did you mean fixed_large"),
        ({"spacing": "even"}, ValueError, "spacing is 'even'"),
        ({"spacing": "karas"}, ValueError, "did you mean karras"),
        ({"dtype": "bf16"}, ValueError, "dtype is 'bf16'"),
        ({"steps": 0}, ValueError, "steps is 0; need at least 1"),
        ({"steps": 2.5}, TypeError, "steps is 2.5"),
        ({"steps": True}, TypeError, "steps is True"),
        ({"kind": "ddim", "eta": -0.1}, ValueError, "eta is -0.1"),
        ({"kind": "ddim", "eta": float("nan")}, ValueError, "eta is nan"),
        ({"kind": "ddim", "eta": "1"}, TypeError, "eta is '1'"),
        ({"kind": "ddpm", "eta": 1.0}, ValueError, "need kind 'ddim' or 'euler_ancestral'"),
        ({"clip_denoised": 1}, TypeError, "clip_denoised is 1"),
        ({"step": 5}, ValueError, "unknown key 'step'; did you mean steps"),
        ({"kind": "unipc", "order": 4}, ValueError, "order is 4; need None or an int <= 3"),
        ({"kind": "unipc", "order": "2"}, TypeError, "order is '2'"),
        ({"kind": "unipc", "variant": "heun"}, ValueError, "variant is 'heun'; need one of 'bh2'"),
        ({"kind": "dpm_multistep", "form": "x0"}, ValueError, "form is 'x0'; need one of 'data'"),
        (
            {"kind": "ddim", "variance": "learned"},
            ValueError,
            "need kind 'ddpm', to which variance",
        ),
        ({"kind": "heun", "s_churn": -1}, ValueError, "s_churn is -1; need 0 <= s_churn"),
        ({"kind": "heun", "s_noise": True}, TypeError, "s_noise is True"),
        ({"final": "one"}, ValueError, "final is 'one'; need one of 'zero', 'sigma_min'"),
        ({"spacing": "karras", "rho": 0}, ValueError, "rho is 0; need 0.1 <= rho <= 100"),
        ({"spacing": "leading", "steps_offset": -1}, ValueError, "steps_offset is -1"),
        (
            {"spacing": "karras", "sigma_min": 2, "sigma_max": 1.0},
            ValueError,
            "sigma_min is 2, sigma_max is 1.0; need sigma_min < sigma_max",
        ),
    ],
)
def test_bad_settings(settings: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        SamplerConfig.from_dict(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_setting_belongs_to_the_kinds_that_take_it(kind: str) -> None:
    row = SAMPLERS[kind]
    for name, value in OF_KINDS.items():
        if name == "variant":
            value = row.variants[-1] if row.variants else "heun"
        if name in row.options:
            assert getattr(SamplerConfig(kind, **{name: value}), name) == value
        else:
            text = (
                rf"{name} is {value!r} with kind '{kind}'; need kind '.*, to which {name} belongs"
            )
            with pytest.raises(ValueError, match=text):
                SamplerConfig(kind, **{name: value})


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_setting_belongs_to_the_spacings_that_take_it(spacing: str) -> None:
    for name, value in OF_SPACINGS.items():
        if name in SPACINGS[spacing]:
            assert getattr(SamplerConfig(spacing=spacing, **{name: value}), name) == value
        else:
            text = rf"{name} is {value!r} with spacing '{spacing}'; need spacing '.*, to which"
            with pytest.raises(ValueError, match=text):
                SamplerConfig(spacing=spacing, **{name: value})


def test_eta_is_the_samplers_own_where_nobody_says_it() -> None:
    assert [SamplerConfig(kind).eta for kind in ("ddpm", "ddim")] == [0.0, 0.0]
    assert SamplerConfig("euler_ancestral").eta == 1.0
    assert SamplerConfig("euler_ancestral", eta=0.0).eta == 0.0


def test_files_of_earlier_versions() -> None:
    """They have eta 0 and a variance with every kind."""
    saved = {"kind": "ddim", "steps": 20, "eta": 0.0, "variance": "fixed_small",
             "clip_denoised": True, "spacing": "linspace", "dtype": "float32"}  # fmt: skip
    assert SamplerConfig.from_dict(saved).to_dict().items() >= saved.items()
    saved["kind"] = "ddpm"
    assert SamplerConfig.from_dict(saved).eta == 0.0


def test_what_another_kind_or_spacing_takes_along() -> None:
    before = SamplerConfig("heun", 20, s_churn=4.0, spacing="karras", rho=5.0).to_dict()
    assert unsaid({"steps": 5}, before) == {}
    assert unsaid({"kind": "heun", "spacing": "karras"}, before) == {}
    for changes in ({"kind": "unipc"}, {"kind": "ddpm"}, {"spacing": "linspace"}):
        config = SamplerConfig.from_dict({**before, **unsaid(changes, before), **changes})
        assert config.steps == 20
        assert config.s_churn == (4.0 if "spacing" in changes else None)
        assert config.rho == (None if "spacing" in changes else 5.0)
    assert "eta" in unsaid({"kind": "ddim"}, {})  # of the default, "ddpm"
    learned = SamplerConfig("ddpm", variance="learned").to_dict()
    assert unsaid({"kind": "ddim"}, learned)["variance"] == "fixed_large"
