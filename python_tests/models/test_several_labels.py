"""Several labels of each image in one call: blocks of what separate calls give."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from ddsm_ext.bench.steps import random_network
from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.graph import NetworkConfig
from ddsm_ext.models import ADMConfig, DhariwalUNetConfig, SongUNetConfig, UNetConfig
from ddsm_ext.sampling import SamplerConfig, sample

ADM = ADMConfig(
    image_size=8, ch=16, ch_mult=(1, 2), attn=(0, 1), num_res_blocks=1, dropout=0.0, groups=8,
    head_channels=8, num_classes=5, null_class=True,
)  # fmt: skip
SMALL: dict[str, Any] = {
    "image_size": 8, "ch": 32, "ch_mult": (1, 2), "attn": (1,), "num_res_blocks": 1, "groups": 4,
    "dropout": 0.0, "num_classes": 5,
}  # fmt: skip
# Network -> layers of the images that no label takes part in
CONFIGS: dict[str, tuple[NetworkConfig, set[str]]] = {
    "adm": (ADM, {"x", "head", "down.0.norm1", "down.0.conv1"}),
    # its time embedding is added to the first convolution of a block
    "iddpm": (dataclasses.replace(ADM, scale_shift=False, resample_blocks=False), {"x", "head"}),
    "song-unet": (SongUNetConfig(**SMALL), {"x", "head"}),
    # whose branch of the image alone meets the one with labels
    "ncsn++": (
        SongUNetConfig(**SMALL, fourier=True, aux_residual=True, taps=4, time_mult=2),
        {"x", "head", "down.1.aux"},
    ),
    # whose labels are a context that transformers attend to, from the first of its second level on
    "ldm": (
        dataclasses.replace(
            ADM, ch=32, attn=(1,), scale_shift=False, resample_blocks=False, context_channels=24
        ),
        {
            "x", "head", "down.0.norm1", "down.0.conv1", "down.0.norm2", "down.0.conv2",
            "down.1.conv", "down.2.norm1", "down.2.conv1", "down.2.norm2", "down.2.conv2",
            "down.2.shortcut",
            *(f"down.2.attention.{name}" for name in ("norm", "project_in")),
            *(
                f"down.2.attention.blocks.0.{name}"
                for name in ("norm1", "attn1.qkv", "attn1.products", "norm2", "attn2.q")
            ),
        },
    ),
    "dhariwal-unet": (
        DhariwalUNetConfig(**SMALL), {"x", "head", "down.0.norm1", "down.0.conv1"}
    ),
}  # fmt: skip


def given(count: int, images: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images)
    x = torch.randn(images, 3, 8, 8, generator=generator)
    t = torch.rand(images, generator=generator) * 3
    return x, t, torch.randint(0, 6, (count * images,), generator=generator)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_comes_before_labels(name: str) -> None:
    config, names = CONFIGS[name]
    assert {node.name for node in config.graph.before_labels} == names


@pytest.mark.parametrize("same_t", [False, True])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_equal_separate_calls(name: str, images: int, same_t: bool) -> None:
    net = random_network(CONFIGS[name][0])
    x, t, y = given(3, images)
    t = t[:1].expand(images) if same_t else t
    for width in (1.0, 0.6, 0.25):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")  # running as the modules would warn
            parts = [net.run_modules(x, t, width, part) for part in y.split(images)]
            compiled, modules = net(x, t, width, y), net.run_modules(x, t, width, y)
        expected = torch.cat(parts)
        assert (parts[0] - parts[1]).abs().max() > 1e-3
        torch.testing.assert_close(modules, expected, rtol=1e-5, atol=1e-5)
        assert (compiled - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_gradients_are_sums_over_the_blocks() -> None:
    x, t, y = given(2, 3)
    found = []
    for blocks in (False, True):
        net = random_network(ADM).double()
        calls = [y] if blocks else [y[:3], y[3:]]
        for labels in calls:
            net(x.double(), t, 0.5, labels).square().sum().backward()
        found.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("labels", [2, 4, 0])
def test_parts_of_a_block_are_refused(labels: int) -> None:
    net = random_network(ADM)
    x, t, _ = given(1, 3)
    with pytest.raises(ValueError, match=r"need one int64 label an image, or several"):
        net(x, t, 1.0, torch.zeros(labels, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"need one int64 label an image$"):
        net.export_subnet(0.5)(x, t, torch.zeros(6, dtype=torch.int64))


def test_without_labels_all_images_are_before_them() -> None:
    graph = UNetConfig(image_size=8, ch=32, ch_mult=(1,), attn=()).graph
    assert graph.before_labels == {node for node in graph.nodes if node.size is not None}


def test_guidance_takes_both_labels_in_one_call() -> None:
    """As from a function that calls the network, which takes the images twice."""
    net = random_network(ADM)
    schedule = make_schedule(DiffusionConfig(schedule="cosine"))
    settings = SamplerConfig("ddim", 4, guidance=2.0, clip_denoised=False)
    how: dict[str, Any] = {"labels": [0, 1, 2, 4], "null_label": 5, "batch_size": 3}
    common = (schedule, 0.5, range(4), (3, 8, 8), settings)
    found = sample(net, *common, **how)
    expected = sample(lambda *given: net(*given), *common, **how)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_images_beside_float32_weights(name: str) -> None:
    net = random_network(CONFIGS[name][0])
    x, t, y = given(1, 3)
    with torch.no_grad():
        found = net.run_modules(x.bfloat16(), t, 0.5, y)
        expected = net.run_modules(x, t, 0.5, y)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() <= 0.1 * expected.abs().max()
