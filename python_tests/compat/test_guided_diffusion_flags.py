"""Flags of guided-diffusion's scripts, as its model card and improved-diffusion's print them."""

from __future__ import annotations

import pytest

from ddsm_ext.compat.guided_diffusion import guided_diffusion_config
from ddsm_ext.compat.guided_diffusion_flags import parse_guided_diffusion_flags
from ddsm_ext.diffusion import make_schedule, prediction_of
from ddsm_ext.graph import parameter_count
from ddsm_ext.models import preset
from ddsm_ext.run import configure

# README of guided-diffusion, class-conditional ImageNet-64
IMAGENET64 = """MODEL_FLAGS="--attention_resolutions 32,16,8 --class_cond True
--diffusion_steps 1000 --dropout 0.1 --image_size 64 --learn_sigma True --noise_schedule cosine
--num_channels 192 --num_head_channels 64 --num_res_blocks 3 --resblock_updown True
--use_new_attention_order True --use_fp16 True --use_scale_shift_norm True"
python classifier_sample.py $MODEL_FLAGS --classifier_scale 1.0 --classifier_path c.pt \\
    --model_path models/64x64_diffusion.pt --batch_size 4 --num_samples 100 --timestep_respacing 250
"""
# README of improved-diffusion, unconditional CIFAR-10 by L_hybrid
CIFAR10 = """
--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3
--diffusion_steps 4000 --noise_schedule cosine --lr 1e-4 --batch_size 128
"""


def test_the_class_conditional_network_of_the_model_card() -> None:
    flags = parse_guided_diffusion_flags(IMAGENET64)
    config = guided_diffusion_config(flags.unet)
    assert config == preset("adm-imagenet64")
    assert round(parameter_count(config) / 1e6, 1) == 295.9
    assert (flags.diffusion.schedule, flags.diffusion.timesteps) == ("cosine", 1000)
    sampler = flags.sampler
    assert (sampler.kind, sampler.steps, sampler.spacing) == ("ddpm", 250, "linspace")
    assert (sampler.variance, sampler.clip_denoised) == ("learned", True)
    assert flags.unet["use_new_attention_order"] is True


def test_improved_diffusions_network_and_process() -> None:
    flags = parse_guided_diffusion_flags(CIFAR10, code="improved-diffusion")
    assert guided_diffusion_config(flags.unet) == preset("iddpm-cifar10")
    assert (flags.diffusion.schedule, flags.diffusion.timesteps) == ("cosine", 4000)
    assert flags.diffusion == configure("iddpm-cifar10").diffusion
    level = make_schedule(flags.diffusion).level(3000)
    assert prediction_of(flags.diffusion).time(level) == 750.0  # t 1000 / T, rescale_timesteps
    assert not parse_guided_diffusion_flags(CIFAR10).diffusion.rescale_timesteps


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("--use_ddim True --timestep_respacing 25", {"kind": "ddim", "steps": 25}),
        ("--timestep_respacing ddim25", {"kind": "ddim", "steps": 25, "spacing": "leading"}),
        ("--sigma_small=True", {"kind": "ddpm", "steps": None, "variance": "fixed_small"}),
        ("--clip_denoised False", {"clip_denoised": False, "variance": "fixed_large"}),
    ],
)
def test_samplers(text: str, changes: dict[str, object]) -> None:
    sampler = parse_guided_diffusion_flags(text).sampler
    assert {name: getattr(sampler, name) for name in changes} == changes


def test_linear_betas_are_scaled_with_the_number_of_steps() -> None:
    diffusion = parse_guided_diffusion_flags("--diffusion_steps 4000 --predict_xstart y").diffusion
    assert (diffusion.beta_start, diffusion.beta_end) == (2.5e-5, 0.005)
    assert diffusion.parameterisation == "x0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--image_siz 64", "f.txt: unknown flag --image_siz; did you mean image_size"),
        ("--image_size", "f.txt: --image_size has no value"),
        ("--image_size --dropout 0.1", "f.txt: --image_size has no value"),
        ("--image_size big", "f.txt: --image_size is 'big'; need a whole number"),
        ("--class_cond maybe", "f.txt: --class_cond is 'maybe'; need True or False"),
        ("--image_size 48", "f.txt: --image_size is 48 without --channel_mult"),
        ("--attention_resolutions a", "f.txt: --attention_resolutions is 'a'"),
        ("--timestep_respacing 10,5", "f.txt: --timestep_respacing is '10,5'"),
        ("--noise_schedule sqrt", "f.txt: DiffusionConfig: schedule is 'sqrt'"),
        ('"--image_size 64', "f.txt: No closing quotation"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_guided_diffusion_flags(text, source="f.txt")
    assert "\n" not in str(caught.value)
