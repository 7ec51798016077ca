"""Runs as folders of diffusers: stock pipelines load them and sample as the run does."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.made_autoencoders import save_autoencoder
from diffusers_there import diffusers
from torch import Tensor

from ddsm_ext.data.codec import Codec
from ddsm_ext.diffusion import make_schedule
from ddsm_ext.diffusion.prediction import prediction_of
from ddsm_ext.models import SlimmableNetwork
from ddsm_ext.run import configure
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.diffusers_schedulers import scheduler_of
from ddsm_ext.run.pipelines import export_pipeline
from ddsm_ext.sampling import Strategy, noise_levels
from ddsm_ext.sampling.denoiser import Denoiser
from ddsm_ext.sampling.levels import configured

ADM = {"family": "adm", "image_size": 8, "image_channels": 3, "ch": 16, "ch_mult": [1, 2],
       "attn": [1], "num_res_blocks": 1, "groups": 8, "head_channels": 8,
       "learned_sigma": False}  # fmt: skip
UNET = {"image_size": 8, "image_channels": 1, "ch": 16, "ch_mult": [1, 2], "attn": [],
        "num_res_blocks": 1, "groups": 4}  # fmt: skip
STRATEGY = Strategy((0.5, 1.0, 0.25), (-4.0, 0.0))
V = {"schedule": "cosine", "parameterisation": "v"}


def config(sampler: dict[str, Any], model: Any = ADM, **sections: Any) -> RunConfig:
    plain = {"clip_denoised": False, "steps": 8, **sampler}
    return configure(model=model, sampler=plain, diffusion=sections.pop("diffusion", V), **sections)


def network(run: RunConfig) -> SlimmableNetwork:
    net = SlimmableNetwork(run.model).eval()
    g = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.1, generator=g)
    return net


def written(run: RunConfig, folder: Path, **how: Any) -> Path:
    return export_pipeline(partial(network, run), run, folder, **{"strategy": STRATEGY, **how})


def images_of_pipeline(folder: Path, run: RunConfig) -> np.ndarray:
    """[N, H, W, C] from 0 to 1."""
    pipe = diffusers().DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    call = scheduler_of(run, latents=hasattr(pipe, "vqvae")).call
    return pipe(2, generator, **call, output_type="np").images


def images_of_run(run: RunConfig, strategy: Strategy | float = STRATEGY) -> Tensor:
    """[N, C, H, W] as the run's sampler makes them from the same noise."""
    schedule = make_schedule(run.diffusion)
    levels = noise_levels(schedule, run.sampler)
    model, generator = run.model, torch.Generator().manual_seed(1)
    shape = (2, model.image_channels, model.image_size, model.image_size)
    draw = partial(torch.randn, shape, generator=generator)
    start = draw()
    denoise = Denoiser(
        network(run), strategy, prediction_of(run.diffusion), clip=run.sampler.clip_denoised
    )
    with torch.no_grad():
        return configured(run.sampler, schedule)(denoise, start, levels, draw)


def shown(images: Tensor) -> np.ndarray:
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


SAME = {
    "ddim": {"kind": "ddim", "spacing": "leading"},
    "ddpm": {"kind": "ddpm", "spacing": "leading", "clip_denoised": True},
    "fixed_small": {"kind": "ddpm", "spacing": "linspace", "variance": "fixed_small"},
    "clipped": {"kind": "ddim", "spacing": "trailing", "clip_denoised": True},
    "dpmpp_2m": {"kind": "dpmpp_2m", "final": "sigma_min"},
}


@pytest.mark.parametrize("model", [ADM, UNET], ids=["adm", "unet"])
@pytest.mark.parametrize("name", SAME)
def test_a_pipeline_samples_as_the_run(name: str, model: Any, tmp_path: Path) -> None:
    if name not in ("ddim", "dpmpp_2m") and model is UNET:
        pytest.skip("the network is no matter to the others")
    run = config(SAME[name], model)
    folder = written(run, tmp_path / "p")
    made = images_of_pipeline(folder, run)
    assert made.std() > 0.05
    np.testing.assert_allclose(made, shown(images_of_run(run)), atol=2e-3)


@pytest.mark.parametrize(("model", "width"), [(ADM, 1.0), (ADM, 0.5), (UNET, 0.25)])
def test_a_width_needs_nothing_of_this_package(model: Any, width: float, tmp_path: Path) -> None:
    run = config(SAME["ddim"], model)
    folder = written(run, tmp_path / "p", width=width)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    made = images_of_pipeline(folder, run)
    np.testing.assert_allclose(made, shown(images_of_run(run, width)), atol=1e-4)


def test_timesteps_of_another_number(tmp_path: Path) -> None:
    process = {**V, "timesteps": 400, "rescale_timesteps": True}
    run = config(SAME["ddim"], diffusion=process)
    expected = shown(images_of_run(run, 0.5))
    for how in ({"width": 0.5}, {"strategy": Strategy.constant(0.5)}):
        made = images_of_pipeline(written(run, tmp_path / "p", **how), run)
        np.testing.assert_allclose(made, expected, atol=1e-3)


def test_flow_starts_at_noise_alone(tmp_path: Path) -> None:
    """x += (s' - s) v from s = 1 down, which DDPMPipeline's scheduler does (7-families 6)."""
    run = config({"kind": "euler"}, diffusion={"parameterisation": "flow"})
    made = images_of_pipeline(written(run, tmp_path / "p"), run)
    net, x = network(run), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    shares = torch.linspace(1.0, 0.001, 8).tolist()
    for share, after in zip(shares, [*shares[1:], 0.0], strict=True):
        log_snr = 2 * np.log((1 - share) / share) if share < 1 else -np.inf
        t = torch.tensor([1000 * share] * 2)
        with torch.no_grad():
            x = x + (after - share) * net.run_modules(x, t, STRATEGY.width_at(log_snr))
    np.testing.assert_allclose(made, shown(x), atol=1e-3)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_latents_are_decoded(kind: str, tmp_path: Path) -> None:
    channels = 3 if kind == "vq" else 2
    model = {**ADM, "image_channels": channels}
    run = config(SAME["ddim"], model)
    place = save_autoencoder(tmp_path / "autoencoder", kind)
    if kind == "vq":
        folder, scale, shift = written(run, tmp_path / "p", autoencoder=place), 1.0, 0.0
    else:  # a run that was trained on latents knows their autoencoder, and its scale
        known, scale, shift = {**Codec.load(place).config.to_dict(), "scale": 0.6}, 0.6, 0.1
        folder = written(config(SAME["ddim"], model, codec=known), tmp_path / "p")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "LDMPipeline"
    with torch.no_grad():
        expected = autoencoder_of(place).decode(images_of_run(run) / scale + shift).sample
    np.testing.assert_allclose(images_of_pipeline(folder, run), shown(expected), atol=2e-3)
    other = config(SAME["ddim"], {**ADM, "image_channels": 1})
    with pytest.raises(ValueError, match=r"decodes . channels, the network makes 1; need the auto"):
        written(other, tmp_path / "q", autoencoder=place)


def autoencoder_of(folder: Path) -> Any:
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    return getattr(diffusers(), name).from_pretrained(folder)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_a_shift_moves_into_the_autoencoder(kind: str, tmp_path: Path) -> None:
    """Its latents are z - shift, both ways, and its images the same."""
    place = save_autoencoder(tmp_path / "autoencoder", kind)
    model = {**ADM, "image_channels": 3 if kind == "vq" else 2}
    known = {**Codec.load(place).config.to_dict(), "scale": 1.7, "shift": -0.4}
    folder = written(config(SAME["ddim"], model, codec=known), tmp_path / "p")
    theirs, ours = autoencoder_of(place), autoencoder_of(folder / "vqvae")
    again = Codec.load(folder / "vqvae").config
    assert (again.scale, again.shift) == (1.7, 0.0)
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        given, found = theirs.encode(x), ours.encode(x)
        z = given.latents if kind == "vq" else given.latent_dist.mean
        moved = found.latents if kind == "vq" else found.latent_dist.mean
        torch.testing.assert_close(moved, z + 0.4)
        if kind == "kl":
            torch.testing.assert_close(found.latent_dist.logvar, given.latent_dist.logvar)
        torch.testing.assert_close(ours.decode(moved).sample, theirs.decode(z).sample)


def test_latents_without_an_autoencoder_are_refused(tmp_path: Path) -> None:
    run = config(SAME["ddim"], {**ADM, "image_channels": 4})
    with pytest.raises(ValueError, match=r"4 channels, as latents have; need .*--autoencoder"):
        written(run, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_flow_says_that_its_levels_are_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = config({"kind": "euler", "spacing": "karras"}, diffusion={"parameterisation": "flow"})
    written(run, tmp_path / "p")
    assert (
        "visits the shares of noise 1, 0.8573 ... 0.001, the run's sampler 1, 0.9999 ... 0.01"
        in caplog.text
    )


def test_edm_in_a_pipeline_of_latents(tmp_path: Path) -> None:
    process = {"schedule": "edm", "parameterisation": "edm"}
    run = config({"kind": "euler", "spacing": "karras"}, diffusion=process)
    place = save_autoencoder(tmp_path / "autoencoder", "vq")
    folder = written(run, tmp_path / "p", autoencoder=place)
    levels = noise_levels(make_schedule(run.diffusion), run.sampler)
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    start = start * (levels[0].sigma ** 2 + 1) ** 0.5  # as EDMEulerScheduler has it
    denoise = Denoiser(network(run), STRATEGY, prediction_of(run.diffusion))
    sampler = configured(run.sampler, make_schedule(run.diffusion))
    with torch.no_grad():
        latents = sampler(denoise, start, levels, lambda: start)
        expected = diffusers().VQModel.from_pretrained(place).decode(latents).sample
    np.testing.assert_allclose(images_of_pipeline(folder, run), shown(expected), atol=2e-3)


def test_a_folder_is_replaced_whole_or_left_alone(tmp_path: Path) -> None:
    run, folder = config(SAME["ddim"]), tmp_path / "p"
    written(run, folder)
    (folder / "old").write_text("")
    before = (folder / "unet" / "config.json").read_text()
    for wrong in (
        config({"kind": "heun", "spacing": "karras"}),
        config({**SAME["ddim"], "steps": 7}),
    ):
        if wrong.sampler.kind == "heun":
            with pytest.raises(ValueError, match=r"sampler.kind is 'heun'"):
                written(wrong, folder)
            assert (folder / "old").exists()
            assert (folder / "unet" / "config.json").read_text() == before
        else:
            written(wrong, folder)
            assert not (folder / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="other holds other files; need a new folder, or a pipeli"):
        written(run, tmp_path / "other")


def test_what_differs_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ddsm_ext")
    run = config({"kind": "ddim", "steps": 20, "eta": 0.5, "clip_denoised": True})
    folder = written(run, tmp_path / "p")
    differs, call = caplog.messages
    assert differs == (
        "DDIMScheduler visits the timesteps 999, 949 ... 49, the run's sampler 999, 946 ... 0"
    )
    how = "num_inference_steps=20, eta=0.5, use_clipped_model_output=True"
    assert call == f'import ddsm_ext; DDIMPipeline.from_pretrained("{folder}")({how})'
    # the cosine schedule's first sigmas of Karras are all of the last timestep but one
    karras = config({"kind": "dpmpp_2m", "spacing": "karras", "steps": 20})
    with pytest.raises(ValueError, match=r"rounds its first two timesteps to 998 and loses count"):
        written(karras, tmp_path / "q")


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "diffusers" else find(name)
    )
    with pytest.raises(ImportError, match=r"export --to diffusers: diffusers is not installed; n"):
        export_pipeline(pytest.fail, config(SAME["ddim"]), tmp_path / "p", strategy=STRATEGY)
