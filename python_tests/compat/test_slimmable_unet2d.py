"""`SlimmableUNet2D`: stock pipelines and schedulers run it as they run diffusers' own network."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers_there import diffusers
from torch import Tensor

import ddsm_ext
from ddsm_ext.compat import to_unet2d
from ddsm_ext.diffusion import DiffusionConfig
from ddsm_ext.models import ADMConfig, SlimmableNetwork, UNetConfig
from ddsm_ext.runtime import StepRunner
from ddsm_ext.sampling import Strategy

CONFIG = ADMConfig(
    8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, dropout=0.1, groups=8, head_channels=8,
    learned_sigma=False,
)  # fmt: skip
# Noisy steps at half of the width, clean ones at a quarter; log-SNRs of DDPM's linear betas.
STRATEGY = Strategy((0.5, 1.0, 0.25), (-4.0, 1.0))
STEPS = 6


@lru_cache
def network(config: Any = CONFIG) -> SlimmableNetwork:
    net = SlimmableNetwork(config).eval()
    g = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.1, generator=g)
    return net


def model(strategy: Strategy | float = 1.0, config: Any = CONFIG, **process: Any) -> Any:
    diffusers()
    return ddsm_ext.SlimmableUNet2D.from_network(
        network(config), strategy, DiffusionConfig(**process)
    )


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@lru_cache
def stock() -> Any:
    """Diffusers' network with the same weights."""
    settings, state = to_unet2d(network())
    unet = diffusers().UNet2DModel(**settings)
    unet.load_state_dict(state)
    return unet.eval()


class ByStrategy(torch.nn.Module):
    """Stands for a network in a pipeline: ours, at widths that it looks up by itself."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self.net, self.strategy = network(), strategy
        self.config, self.dtype, self.device = stock().config, torch.float32, torch.device("cpu")
        steps = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        kept = (1 - steps).cumprod(0)
        self.log_snr = (kept / (1 - kept)).log()

    def forward(self, x: Tensor, t: Tensor) -> Any:
        low = int(t)  # between two timesteps log-SNR is linear
        share = float(t) - low
        level = self.log_snr[low] * (1 - share) + self.log_snr[min(low + 1, 999)] * share
        y = self.net.run_modules(x, t.float(), self.strategy.width_at(level.item()))
        return diffusers().models.unets.unet_2d.UNet2DOutput(sample=y)


def sampled(pipeline: str, unet: Any, scheduler: Any, steps: int = STEPS) -> np.ndarray:
    found, parts = diffusers(), {"unet": unet, "scheduler": scheduler}
    if pipeline == "LDMPipeline":
        torch.manual_seed(2)
        parts["vqvae"] = found.VQModel(
            block_out_channels=(8,), norm_num_groups=4, latent_channels=3, num_vq_embeddings=8,
            scaling_factor=1.0,
        ).eval()  # fmt: skip
    pipe = getattr(found, pipeline)(**parts)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(3)
    how = {"batch_size": 2, "num_inference_steps": steps, "output_type": "np"}
    return pipe(generator=torch.Generator().manual_seed(4), **how).images


# Scheduler -> what happens with it in pipelines that neither scale the input nor ask before they
# pass a generator, and in LDMPipeline. DDIMPipeline makes DDIM of any.
TABLE = {
    "DDPMScheduler": ("works", "works"),
    "DDIMScheduler": ("works", "works"),
    "DPMSolverMultistepScheduler": ("works", "works"),
    "UniPCMultistepScheduler": ("unexpected keyword argument 'generator'", "works"),
    "HeunDiscreteScheduler": ("unexpected keyword argument 'generator'", "works"),
    # Wrongly, without an error: its input is not scaled.
    "EulerDiscreteScheduler": ("works", "works"),
    "EDMEulerScheduler": ("works", "works"),
    "FlowMatchEulerDiscreteScheduler": ("works", "has no attribute 'init_noise_sigma'"),
}
PROCESSES: dict[str, dict[str, Any]] = {
    "EDMEulerScheduler": {"schedule": "edm", "parameterisation": "edm"},
    "FlowMatchEulerDiscreteScheduler": {"parameterisation": "flow"},
}


@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "LDMPipeline", "DDIMPipeline"])
@pytest.mark.parametrize("scheduler", TABLE)
def test_pipelines_and_schedulers(pipeline: str, scheduler: str) -> None:
    """At full width, the images of diffusers' own network; or its error."""
    steps = getattr(diffusers(), scheduler)
    unet = model(**PROCESSES.get(scheduler, {}))
    expected = TABLE[scheduler][pipeline == "LDMPipeline"]
    if expected == "works" or pipeline == "DDIMPipeline":
        ours, theirs = (sampled(pipeline, net, steps()) for net in (unet, stock()))
        assert ours.std() > 0.02
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        return
    for net in (unet, stock()):
        with pytest.raises((TypeError, AttributeError), match=expected):
            sampled(pipeline, net, steps())


@pytest.mark.parametrize(
    ("pipeline", "scheduler"),
    [(p, s) for s, row in TABLE.items() if s not in PROCESSES
     for p, cell in zip(("DDPMPipeline", "LDMPipeline"), row, strict=True) if cell == "works"],
)  # fmt: skip
def test_widths_follow_the_strategy(pipeline: str, scheduler: str) -> None:
    """Also between timesteps, and at a second-order sampler's second evaluation."""
    steps = getattr(diffusers(), scheduler)
    images = [sampled(pipeline, net, steps()) for net in (model(STRATEGY), ByStrategy(STRATEGY))]
    np.testing.assert_allclose(*images, atol=2e-4)
    other = sampled(pipeline, model(Strategy((1.0, 0.5), (0.0,))), steps())
    assert np.abs(images[0] - other).max() > 1e-3


def test_log_snr_of_each_kind_of_time() -> None:
    for process, t, log_snr in (
        ({}, 999, -10.11),  # 4.04e-5 of the image's variance is left
        ({}, 0, 9.2102),  # of 0.9999
        ({"timesteps": 4000, "rescale_timesteps": True, "schedule": "cosine"}, 2000, -0.0262),
        (PROCESSES["EDMEulerScheduler"], 0.25 * np.log(2.0), -2 * np.log(2.0)),
        (PROCESSES["FlowMatchEulerDiscreteScheduler"], 900.0, 2 * np.log(1 / 9)),
    ):
        below, above = (
            model(Strategy((0.5, 1.0), (log_snr + d,)), **process) for d in (-0.02, 0.02)
        )
        assert (below.width_at(t), above.width_at(t)) == (1.0, 0.5)
    flow = model(Strategy((0.5, 1.0), (0.0,)), parameterisation="flow")
    assert (flow.width_at(1000.0), flow.width_at(0.0)) == (0.5, 1.0)
    assert model(STRATEGY).width_at(1e4) == 0.5  # beyond the schedule's: its end's


def test_what_timestep_may_be() -> None:
    unet, x = model(STRATEGY), images(3)
    for t in (7, 7.5, torch.tensor(7), torch.tensor([7]), torch.tensor([7.0] * 3)):
        value = float(torch.as_tensor(t).flatten()[0])
        expected = network().run_modules(x, torch.tensor([value]).expand(3), 0.25)
        with torch.no_grad():
            torch.testing.assert_close(unet(x, t).sample, expected, rtol=1e-4, atol=1e-5)
            (alone,) = unet(x, t, return_dict=False, encoder_hidden_states=None)
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    t = torch.tensor([999, 3, 400])
    each = [unet(x[i : i + 1], t[i]).sample for i in range(3)]
    assert [unet.width_at(time) for time in t.tolist()] == [0.5, 0.25, 1.0]
    torch.testing.assert_close(unet(x, t).sample, torch.cat(each), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="timestep has 2 values, sample 3 images; need one"):
        unet(x, t[:2])


def test_timesteps_are_rescaled_as_the_network_was_trained() -> None:
    unet, x = model(timesteps=4000, rescale_timesteps=True, schedule="cosine"), images()
    expected = network().run_modules(x, torch.tensor([499.75] * 2), 1.0)
    torch.testing.assert_close(unet(x, 1999).sample, expected)


def test_labels_and_the_one_for_no_class() -> None:
    config = ADMConfig.from_dict({**CONFIG.to_dict(), "num_classes": 4, "null_class": True})
    unet, x, t = model(0.5, config), images(), torch.tensor([5, 5])
    assert unet.config.num_class_embeds == 5
    for labels in (torch.tensor([1, 3]), None):
        known = torch.tensor([4, 4]) if labels is None else labels
        expected = network(config).run_modules(x, t, 0.5, known)
        torch.testing.assert_close(unet(x, 5, labels).sample, expected)
    without = ADMConfig.from_dict({**config.to_dict(), "null_class": False})
    with pytest.raises(ValueError, match="got no labels, the network is class-conditional; need y"):
        model(0.5, without)(x, 5)


def test_compiled_steps_run_in_it() -> None:
    unet, x = model(STRATEGY), images()
    assert StepRunner(unet.network).reason_against(torch.float32, x.device) is None
    calls: list[float] = []
    hook = unet.network.register_forward_hook(lambda m, inputs, y: calls.append(inputs[2]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # running as the modules would warn
        unet(x, 999)
    assert calls == [0.5]
    assert unet.network._runner is not None
    assert unet.network._runner.held_bytes() > 0
    hook.remove()


def test_it_trains_at_any_width() -> None:
    unet, x = copy.deepcopy(model(STRATEGY)).train(), images(4)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-2)
    noise, t = torch.randn_like(x), torch.tensor([999, 3, 400, 10])
    losses = []
    for width in (1.0, 0.25, None) * 8:
        loss = (unet(x, t, width=width).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[2]
    assert all(parameter.grad is not None for parameter in unet.parameters())
    frozen = unet.requires_grad_(False)
    assert not frozen(x, t, width=1.0).sample.requires_grad


def test_copies_averages_and_precision() -> None:
    from diffusers.training_utils import EMAModel

    unet, x = model(STRATEGY), images()
    with torch.no_grad():
        expected = unet(x, 500).sample
        torch.testing.assert_close(copy.deepcopy(unet)(x, 500).sample, expected)
        average = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
        other = type(unet).from_config(unet.config)
        average.copy_to(other.parameters())
        torch.testing.assert_close(other.eval()(x, 500).sample, expected)
        assert other.strategy == STRATEGY
        half = copy.deepcopy(unet).to(torch.bfloat16)
        assert half.dtype == torch.bfloat16
        low = half(x.bfloat16(), 500).sample
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), expected, rtol=0.1, atol=0.02)
        double = copy.deepcopy(unet).to(torch.float64)(x.double(), 500).sample
        torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-5)
    assert not unet.training
    assert not unet.is_gradient_checkpointing


def test_strategies_that_are_set_are_saved() -> None:
    unet = model()
    unet.strategy = 0.25
    assert unet.width_at(3) == 0.25
    assert type(unet).from_config(unet.config).strategy.widths == (0.25,)
    with pytest.raises(TypeError, match="strategy is 'x'; need a Strategy or a width"):
        unet.strategy = "x"
    with pytest.raises(ValueError, match="width is 3; need 0 < width <= 1"):
        unet.strategy = 3
    assert unet.strategy.widths == (0.25,)


@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "DDIMPipeline", "LDMPipeline"])
def test_folders_are_whole_in_another_process(pipeline: str, tmp_path: Path) -> None:
    found, unet = diffusers(), model(STRATEGY)
    parts: dict[str, Any] = {"unet": unet, "scheduler": found.DDIMScheduler()}
    if pipeline == "LDMPipeline":
        parts["vqvae"] = found.VQModel(block_out_channels=(8,), norm_num_groups=4,
                                       latent_channels=3, num_vq_embeddings=8)  # fmt: skip
    getattr(found, pipeline)(**parts).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["ddsm_ext", "SlimmableUNet2D"]
    for cls in (getattr(found, pipeline), found.DiffusionPipeline):
        loaded = cls.from_pretrained(tmp_path, local_files_only=True)
        assert type(loaded).__name__ == pipeline
        again = loaded.unet
        assert again.strategy == STRATEGY
        assert again.network.config == CONFIG
        state = again.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in unet.state_dict().items())
    x = images()
    with torch.no_grad():
        assert torch.equal(again(x, 500).sample, unet(x, 500).sample)


OTHER = """
import sys, torch, ddsm_ext
assert "torch" in sys.modules and "diffusers" not in sys.modules
from ddsm_ext._optional import import_diffusers
pipe = import_diffusers("test").DDPMPipeline.from_pretrained(sys.argv[1], local_files_only=True)
pipe.set_progress_bar_config(disable=True)
made = pipe(2, torch.Generator().manual_seed(4), num_inference_steps=3, output_type="np").images
torch.save(torch.from_numpy(made), sys.argv[2])
"""


def test_another_process_loads_it_after_an_import_of_the_package_alone(tmp_path: Path) -> None:
    found = diffusers()
    found.DDPMPipeline(model(STRATEGY), found.DDPMScheduler()).save_pretrained(tmp_path / "p")
    command = [sys.executable, "-c", OTHER, str(tmp_path / "p"), str(tmp_path / "made.pt")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    here = sampled("DDPMPipeline", model(STRATEGY), found.DDPMScheduler(), 3)
    there = torch.load(tmp_path / "made.pt", weights_only=True).numpy()
    np.testing.assert_allclose(there, here, atol=1e-6)


def test_variants_and_dtypes_of_folders(tmp_path: Path) -> None:
    unet = model(STRATEGY)
    unet.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").is_file()
    cls = ddsm_ext.SlimmableUNet2D
    half = cls.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    whole = cls.from_pretrained(tmp_path, variant="fp16", use_safetensors=True)
    for name, tensor in unet.state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor)
        assert torch.equal(half.state_dict()[name], tensor.half())
    with torch.no_grad():
        low = half(images().half(), 500).sample
        expected = unet(images(), 500).sample
    torch.testing.assert_close(low.float(), expected, rtol=0.02, atol=0.02)


def test_networks_of_several_kinds() -> None:
    x, t = images(), torch.tensor([5, 700])
    for config in (
        UNetConfig(8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=8),
        ADMConfig(8, ch=16, ch_mult=(1, 2), attn=(0, 1), num_res_blocks=1, groups=8, heads=2,
                  head_channels=None, learned_sigma=False),
        ADMConfig(8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=8,
                  head_channels=8, pad_end=True, eps=1e-6, freq_shift=1.0, sines_first=True),
    ):  # fmt: skip
        unet = model(1.0, config)
        for width in (1.0, 0.75, 0.5, 0.25):
            expected = network(config).run_modules(x, t, width)
            torch.testing.assert_close(
                unet(x, t, width=width).sample, expected, rtol=1e-4, atol=1e-5
            )
        assert unet.config.widths == [1.0, 0.75, 0.5, 0.25]


def test_what_is_refused() -> None:
    cls = ddsm_ext.SlimmableUNet2D if diffusers() else None
    assert cls is not None
    with pytest.raises(ValueError, match="time_kind is 'sigma'; need one of 'ddpm', 'edm', 'flow'"):
        cls(**{**model().config, "time_kind": "sigma"})
    with pytest.raises(ValueError, match="center_input_sample is True; need False"):
        cls(**{**model().config, "center_input_sample": True})
    with pytest.raises(ValueError, match="parameterisation is 'vp'; need one of"):
        model(parameterisation="vp", schedule="edm")
    fixed = UNetConfig(8, ch=16, ch_mult=(1,), attn=(), num_res_blocks=1, groups=8,
                       norm="fixed_groups", widths=(1.0,))  # fmt: skip
    with pytest.raises(ValueError, match="norm is 'fixed_groups'; need 'channels_per_group'"):
        model(1.0, fixed)


def test_nothing_of_it_is_listed_or_imported_unasked() -> None:
    code = (
        "import sys, ddsm_ext\n"
        "from ddsm_ext import *\n"
        "import ddsm_ext.compat, ddsm_ext.run.exporting, ddsm_ext.run.importing_diffusers\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'diffusers', 'transformers', 'onnx', 'onnxscript', 'onnxruntime'}\n"
        "assert 'SlimmableUNet2D' not in dir(ddsm_ext) + ddsm_ext.__all__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_without_diffusers_the_error_says_how_to_install_it() -> None:
    code = (
        "import sys, ddsm_ext\n"
        "sys.modules['diffusers'] = None\n"
        "try:\n"
        "    ddsm_ext.SlimmableUNet2D\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    need = "ddsm_ext.SlimmableUNet2D: diffusers is not installed; need the extra: "
    assert done.stdout.strip() == need + "pip install 'ddsm_ext[diffusers]'"
