"""Runs made of networks of diffusers and of latent-diffusion, with their processes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compat.official_weights import formula_weights
from compat.test_unet2d_config import TINY
from data.made_autoencoders import save_autoencoder
from diffusers_there import diffusers
from safetensors.torch import load_file, save_file

from ddsm_ext.compat import diffusers_state_dict_shapes, latent_diffusion_state_dict_shapes
from ddsm_ext.data import DataConfig
from ddsm_ext.run import Run
from ddsm_ext.run.encoding import EncodeOptions, Encoding
from ddsm_ext.run.importing_diffusers import import_unet
from ddsm_ext.run.importing_latent_diffusion import import_latent_diffusion
from ddsm_ext.sampling import Strategy
from ddsm_ext.settings import MissingLibrary

CONFIG = {**TINY, "_class_name": "UNet2DModel", "freq_shift": 1, "downsample_padding": 0}
DDPM = {"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "beta_end": 0.01}


def folder_of(
    place: Path,
    scheduler: dict[str, Any] | None = DDPM,
    inner: str = "",
    config: dict[str, Any] = CONFIG,
) -> Path:
    """A model's folder, or with `inner` a pipeline's; diffusers is not needed for it."""
    unet = place / inner
    unet.mkdir(parents=True)
    (unet / "config.json").write_text(json.dumps(config))
    state = formula_weights(diffusers_state_dict_shapes(config))
    save_file(state, unet / "diffusion_pytorch_model.safetensors")
    if scheduler is not None:
        where = place / ("scheduler" if inner else "")
        where.mkdir(exist_ok=True)
        (where / "scheduler_config.json").write_text(json.dumps(scheduler))
    return place


@pytest.mark.parametrize("inner", ["", "unet"])
def test_a_run_of_a_folder(inner: str, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "my model", inner=inner)
    place = import_unet(source, tmp_path / "runs", changes={"sampler": {"steps": 3}})
    assert place.name == "00000-my-model"
    run = Run.open(tmp_path / "runs")
    assert (run.config.diffusion.beta_end, run.config.sampler.kind) == (0.01, "ddpm")
    assert (run.config.sampler.spacing, run.config.sampler.steps) == ("leading", 3)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 800])
    theirs = diffusers().UNet2DModel.from_pretrained(source / inner)
    with torch.no_grad():
        ours, expected = run.network()(x, t, 1.0), theirs(x, t).sample
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert run.sample(range(2), 0.5).images.shape == (2, 8, 8, 3)


def test_a_folder_without_a_scheduler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import_unet(folder_of(tmp_path / "m", None), tmp_path / "runs")
    assert "m: has no scheduler_config.json; linear betas are taken" in caplog.text
    assert Run.open(tmp_path / "runs").config.diffusion.schedule == "linear"


def test_an_exported_pipeline_becomes_the_run_that_it_was(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "m")
    first = Run.open(tmp_path, import_unet(source, tmp_path / "runs"))
    strategy = Strategy((0.5, 1.0), (0.0,))
    pipeline = first.export_to("diffusers", strategy=strategy, out=tmp_path / "p")
    again = Run.open(tmp_path, import_unet(pipeline, tmp_path / "runs", name="again"))
    assert again.folder.name == "00001-again"
    assert again.config.model == first.config.model
    assert again.config.diffusion == first.config.diffusion
    assert again.strategy == strategy
    states = [run.network().state_dict() for run in (first, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


LATENT = {"_class_name": "DDIMScheduler", "clip_sample": False}


def test_a_pipeline_of_latents_brings_its_autoencoder(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "ldm", LATENT, inner="unet")
    save_autoencoder(source / "vqvae", "vq", 3)
    changes = {"sampler": {"steps": 3}, "codec": {"batch_size": 1}}
    first = Run.open(tmp_path, import_unet(source, tmp_path / "runs", changes=changes))
    codec = first.config.codec
    assert (codec.kind, codec.factor, codec.scale, codec.batch_size) == ("vq", 2, 0.18215, 1)
    assert codec.decode_macs > 0
    assert first.sample(range(2), 0.5).images.shape == (2, 16, 16, 3)
    pipeline = first.export_to("diffusers", out=tmp_path / "p")
    again = Run.open(tmp_path, import_unet(pipeline, tmp_path / "runs", name="again"))
    assert again.config.codec.identity == codec.identity


def test_an_autoencoder_of_other_latents_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "ldm", LATENT, inner="unet")
    save_autoencoder(source / "vqvae", "kl", 3)
    with pytest.raises(ValueError, match=r"vqvae: decodes 2 channels, the network makes 3; need"):
        import_unet(source, tmp_path / "runs")


def test_clipping_and_scales_as_a_pipeline_has_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LDMPipeline takes off the scale that is written, and no shift; latents are not clipped."""
    source = folder_of(tmp_path / "ldm", {"_class_name": "DDIMScheduler"}, inner="unet")
    file = save_autoencoder(source / "vqvae", "kl", 3) / "config.json"
    (source / "unet").rename(tmp_path / "three")
    folder_of(source, None, "unet", {**CONFIG, "in_channels": 2, "out_channels": 2})
    run = Run.open(tmp_path, import_unet(source, tmp_path / "runs"))
    assert json.loads(file.read_text())["shift_factor"] == 0.1
    assert (run.config.codec.scale, run.config.codec.shift) == (0.7, 0.0)
    assert not run.config.sampler.clip_denoised
    assert "clip_sample is true; the latents of the run are not clipped" in caplog.text
    (source / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"ldm holds the autoencoder .*vqvae; need another folder"):
        run.export_to("diffusers", out=source, strategy=1.0)
    with pytest.raises(FileNotFoundError, match=r"images: holds no latents\.json, the network ta"):
        run.train()


def test_an_archive_of_latents_is_not_clipped_either(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "m", {"_class_name": "DDIMScheduler"})
    place, digits = save_autoencoder(tmp_path / "vq", "vq"), DataConfig(image_size=16, limit=8)
    Encoding.open(digits, place, EncodeOptions()).write(tmp_path / "latents")
    changes = {"data": {"source": str(tmp_path / "latents")}}
    run = Run.open(tmp_path, import_unet(source, tmp_path / "runs", changes=changes))
    assert (run.config.codec.kind, run.config.codec.scale) == ("vq", 1.0)
    assert not run.config.sampler.clip_denoised


def test_an_autoencoder_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of(tmp_path / "ldm", LATENT, inner="unet")
    save_autoencoder(source / "vqvae", "vq", 3)

    def missing(what: str) -> None:
        raise MissingLibrary(f"{what}: diffusers is not installed")

    monkeypatch.setattr("ddsm_ext.data.codec.import_diffusers", missing)
    with pytest.raises(ImportError, match=r"not installed; or codec.kind=pixels, which leaves the"):
        import_unet(source, tmp_path / "runs")
    left_out = {"codec": {"kind": "pixels"}}
    run = Run.open(tmp_path, import_unet(source, tmp_path / "runs", changes=left_out))
    assert not run.config.codec.of_latents


def test_images_of_four_channels_are_not_sampled(tmp_path: Path) -> None:
    """A network of latents whose autoencoder nobody named."""
    config = {**CONFIG, "in_channels": 4, "out_channels": 4}
    run = Run.open(tmp_path, import_unet(folder_of(tmp_path / "m", config=config), tmp_path / "r"))
    with pytest.raises(ValueError, match=r"takes 4 channels, as latents have; need the folder of"):
        run.sample(range(2), 0.5)


def test_folders_and_changes_that_are_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "m", {**DDPM, "beta_schedule": "sigmoid"})
    with pytest.raises(ValueError, match=r"scheduler_config.json: beta_schedule is 'sigmoid'"):
        import_unet(source, tmp_path / "runs")
    with pytest.raises(TypeError, match="codec is 3; need"):
        import_unet(folder_of(tmp_path / "n"), tmp_path / "runs", changes={"codec": 3})
    with pytest.raises(ValueError, match="changes: model is what the folder decides; need none"):
        import_unet(source, tmp_path / "runs", changes={"model": {"ch": 3}})
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        import_unet(tmp_path / "none", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


UNET = {"image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32,
        "attention_resolutions": [2], "num_res_blocks": 1, "channel_mult": [1, 2],
        "num_head_channels": 16}  # fmt: skip
YAML = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.0015
    linear_end: 0.0155
    timesteps: 1000
    first_stage_key: image
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {}
"""


def checkpoint(place: Path) -> Path:
    state = formula_weights(latent_diffusion_state_dict_shapes(UNET))
    model = {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": model, "global_step": 3}, place / "model.ckpt")
    return place / "model.ckpt"


@pytest.mark.parametrize(
    ("name", "text", "betas"),
    [
        ("unet.json", json.dumps(UNET), ("scaled_linear", 0.0015, 0.0195)),
        ("config.yaml", YAML.format(json.dumps(UNET)), ("scaled_linear", 0.0015, 0.0155)),
        ("config.json", json.dumps({"unet_config": {"params": UNET}, "beta_schedule": "cosine"}),
         ("cosine", 1e-4, 0.02)),
    ],
)  # fmt: skip
def test_checkpoints_of_latent_diffusion(
    name: str, text: str, betas: tuple[str, float, float], tmp_path: Path
) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    file = tmp_path / name
    file.write_text(text)
    import_latent_diffusion(checkpoint(tmp_path), tmp_path / "runs", flags_file=file)
    run = Run.open(tmp_path / "runs")
    process = run.config.diffusion
    assert (process.schedule, process.beta_start, process.beta_end) == betas
    # its DDIM visits 1, 21, ... 981 for 50 steps and ends at alpha-bar of t = 0
    from ddsm_ext.diffusion import make_schedule
    from ddsm_ext.sampling import noise_levels

    visited = [level.t for level in noise_levels(make_schedule(process), run.config.sampler)]
    assert visited == [*range(981, 0, -20), 0]
    expected = formula_weights(latent_diffusion_state_dict_shapes(UNET))
    state = load_file(next(run.folder.glob("checkpoints/*/ema.safetensors")))
    assert torch.equal(state["tail.conv.weight"], expected["out.2.weight"])


def test_a_checkpoint_and_its_autoencoder_become_a_pipeline(tmp_path: Path) -> None:
    (tmp_path / "unet.json").write_text(json.dumps(UNET))
    source = checkpoint(tmp_path)
    import_latent_diffusion(source, tmp_path / "runs", flags_file=tmp_path / "unet.json")
    place = save_autoencoder(tmp_path / "vq", "vq", 3)
    folder = Run.open(tmp_path / "runs").export_to(
        "diffusers", strategy=0.5, autoencoder=place, out=tmp_path / "p"
    )
    pipe = diffusers().LDMPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.steps_offset == 1
    made = pipe(1, num_inference_steps=4, output_type="np").images
    assert made.shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "[]", r"c.json: holds \[\]; need a configuration of latent-diffusion, or its"),
        ("c.json", '{"unet_config": {}}', "c.json: unet_config has params None; need"),
        ("c.json", json.dumps({**UNET, "dims": 3}), "dims is 3; need 2"),
        ("c.json", json.dumps({"unet_config": {"params": UNET}, "beta_schedule": "sqrt"}),
         "c.json: beta_schedule is 'sqrt'; need one of 'linear', 'cosine', 'sqrt_linear'"),
        ("c.yml", "a: [", "c.yml: .*; need YAML"),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    if name.endswith("yml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        import_latent_diffusion(checkpoint(tmp_path), tmp_path / "runs", flags_file=tmp_path / name)
    assert not (tmp_path / "runs").exists()


def test_yaml_without_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    with pytest.raises(ImportError, match="PyYAML is not installed; need pip install pyyaml, or"):
        import_latent_diffusion(
            tmp_path / "m.ckpt", tmp_path / "runs", flags_file=tmp_path / "c.yaml"
        )
