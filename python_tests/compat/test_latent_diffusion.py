"""latent-diffusion checkpoints: full-size networks, a class as a token, files, refusals."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from compat.official_weights import formula_weights
from compat.openai_goldens import read
from safetensors.torch import save_file
from torch import Tensor

from ddsm_ext.compat.latent_diffusion import (
    latent_diffusion_config,
    latent_diffusion_state_dict_shapes,
    load_latent_diffusion,
    to_latent_diffusion_state_dict,
)
from ddsm_ext.graph import layer_macs, macs, parameter_count
from ddsm_ext.models import ADMConfig, SlimmableNetwork, preset

TINY = {"image_size": 8, "in_channels": 4, "model_channels": 32, "out_channels": 4,
        "num_res_blocks": 1, "attention_resolutions": (2,), "channel_mult": (1, 2),
        "num_head_channels": 16, "use_spatial_transformer": True, "context_dim": 12}  # fmt: skip
UNCONDITIONAL = {key: value for key, value in TINY.items()
                 if key not in ("use_spatial_transformer", "context_dim")}  # fmt: skip


def ldm(size: int, channels: int, mult: tuple[int, ...], factors: tuple[int, ...],
        images: int = 3, **more: Any) -> dict[str, Any]:  # fmt: skip
    return {"image_size": size, "in_channels": images, "out_channels": images,
            "model_channels": channels, "num_res_blocks": 2, "attention_resolutions": factors,
            "channel_mult": mult, **more}  # fmt: skip


FULL_SIZE = {
    "LDM_4_CelebA_HQ_FFHQ_LSUN_bedrooms_256_latent_3x64x64": ldm(
        64, 224, (1, 2, 3, 4), (8, 4, 2), num_head_channels=32
    ),
    "LDM_8_LSUN_churches_256_latent_4x32x32": ldm(
        32, 192, (1, 2, 2, 4, 4), (1, 2, 4, 8), 4, num_heads=8, use_scale_shift_norm=True,
        resblock_updown=True,
    ),
    "LDM_4_ImageNet_cin256_v2_latent_3x64x64_1_class_token": ldm(
        64, 192, (1, 2, 3, 5), (8, 4, 2), num_heads=1, use_spatial_transformer=True,
        context_dim=512,
    ),
    "LDM_8_ImageNet_cin256_latent_4x32x32_1_class_token": ldm(
        32, 256, (1, 2, 4), (4, 2, 1), 4, num_head_channels=32, use_spatial_transformer=True,
        context_dim=512,
    ),
}  # fmt: skip
PRESETS = {
    "ldm4-lsun-bedroom": "LDM_4_CelebA_HQ_FFHQ_LSUN_bedrooms_256_latent_3x64x64",
    "ldm4-celebahq": "LDM_4_CelebA_HQ_FFHQ_LSUN_bedrooms_256_latent_3x64x64",
    "ldm4-afhq": "LDM_4_CelebA_HQ_FFHQ_LSUN_bedrooms_256_latent_3x64x64",
    "ldm8-lsun-church": "LDM_8_LSUN_churches_256_latent_4x32x32",
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_names_shapes_and_macs(name: str) -> None:
    data, config = read("full_size_shapes"), latent_diffusion_config(FULL_SIZE[name])
    shapes = {key: tuple(shape) for key, shape in json.loads(str(data[name])).items()}
    assert latent_diffusion_state_dict_shapes(FULL_SIZE[name]) == shapes
    assert parameter_count(config) == sum(math.prod(shape) for shape in shapes.values())
    expected = json.loads(str(data["macs"]))[json.loads(str(data["tags"]))[name]]
    for width, counts in expected.items():
        whole = macs(config, float(width))
        products = whole - macs(config, float(width), attention_products=False)
        assert round(whole / 1e9, 3) == counts["gmac"]
        assert round((whole - products) / 1e9, 3) == counts["gmac_without_attention_products"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_published_networks(name: str) -> None:
    assert preset(name) == latent_diffusion_config(FULL_SIZE[PRESETS[name]])


def test_imagenet_counts_no_more_than_one_token_needs() -> None:
    """The reference's 104.227 G, less the queries, keys and products of the second attentions."""
    ours = preset("ldm4-imagenet")
    args = FULL_SIZE["LDM_4_ImageNet_cin256_v2_latent_3x64x64_1_class_token"]
    assert ours == latent_diffusion_config(args, num_classes=1000, null_class=True)
    whole = latent_diffusion_config(args)
    assert parameter_count(ours) == parameter_count(whole) + 1001 * 512
    needless = {
        name: count for name, count in layer_macs(whole, 1.0).items()
        if ".attn2." in name or name.endswith((".attn2.qk", ".attn2.av"))
    }  # fmt: skip
    kept = {name: count for name, count in layer_macs(ours, 1.0).items() if ".attn2." in name}
    difference = sum(needless.values()) - sum(kept.values())
    assert macs(ours, 1.0) == macs(whole, 1.0) - difference
    assert 0.02 < difference / macs(whole, 1.0) < 0.04


def tiny_state(config: dict[str, Any] = TINY) -> dict[str, Tensor]:
    return formula_weights(latent_diffusion_state_dict_shapes(config), torch.float64)


def checkpoint(rows: int = 5) -> dict[str, Any]:
    """A whole model's state dict: the network, its average (all a little more), and classes."""
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in tiny_state().items()}
    average = {
        f"model_ema.diffusion_model{name.replace('.', '')}": tensor + 0.01
        for name, tensor in tiny_state().items()
    }
    table = torch.randn(rows, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {
        **state,
        **average,
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7),
        "betas": torch.linspace(0.1, 0.2, 10),
        "first_stage_model.quant_conv.weight": torch.zeros(3, 3),
        "cond_stage_model.embedding.weight": table,
    }


def test_a_class_is_one_token_of_a_context() -> None:
    """A softmax over one is 1, so that the first network computes what the second does."""
    by_class = load_latent_diffusion(checkpoint(), TINY)
    assert (by_class.config.num_classes, by_class.config.null_class) == (5, False)
    state = {name: tensor for name, tensor in checkpoint().items() if "ema" in name}
    by_context = load_latent_diffusion(state, TINY)
    table = checkpoint()["cond_stage_model.embedding.weight"]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64)
    t, y = torch.tensor([3, 500, 999]), torch.tensor([0, 4, 2])
    for width in (1.0, 0.5, 0.25):
        expected = by_context(x, t, width, context=table[y][:, None])
        torch.testing.assert_close(by_class(x, t, width, y), expected, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(
            expected, by_context(x, t, width, context=table[y[[1, 2, 0]]][:, None])
        )


def test_what_one_token_makes_needless_is_kept_and_gets_no_gradient() -> None:
    net = load_latent_diffusion(checkpoint(), TINY)
    x, t = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 500])
    net(x, t, 1.0, torch.tensor([1, 2]), accumulate_grad=True).square().sum().backward()
    idle = {name for name, p in net.named_parameters() if p.grad is None}
    assert {name.split(".blocks.0.")[1] for name in idle} == {
        "norm2.weight", "norm2.bias", "attn2.q.weight", "attn2.k.weight"
    }  # fmt: skip


def test_average_is_taken_or_the_one_asked_for() -> None:
    whole = checkpoint()
    averaged = load_latent_diffusion(whole, TINY)
    last = load_latent_diffusion(whole, TINY, group="model.diffusion_model")
    torch.testing.assert_close(
        averaged.get_parameter("head.weight"), last.get_parameter("head.weight") + 0.01
    )
    plain = {name: tensor for name, tensor in whole.items() if "ema" not in name}
    again = load_latent_diffusion({"state_dict": plain, "epoch": 3}, TINY)
    assert torch.equal(again.get_parameter("head.weight"), last.get_parameter("head.weight"))


def test_round_trip() -> None:
    whole = checkpoint()
    net = load_latent_diffusion(whole, TINY, group="model.diffusion_model")
    back = to_latent_diffusion_state_dict(net)
    theirs = {n: t for n, t in whole.items() if n.startswith(("model.", "cond_stage_model."))}
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)
    again = load_latent_diffusion(back, TINY)
    ours = net.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("rows", "asked", "classes", "null"),
    [(5, None, 5, False), (5, 5, 5, False), (5, 4, 4, True), (1001, None, 1000, True)],
)
def test_rows_of_the_classes(rows: int, asked: int | None, classes: int, null: bool) -> None:
    config = load_latent_diffusion(checkpoint(rows), TINY, num_classes=asked).config
    assert (config.num_classes, config.null_class) == (classes, null)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning names what its callbacks kept by their classes, which need not be there to read."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    kind = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = kind
    with monkeypatch.context() as patch:
        for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, name, module)
        torch.save(
            {"state_dict": checkpoint(), "callbacks": {kind: {"best": 1.0}}},
            tmp_path / "model.ckpt",
        )
    save_file(tiny_state(UNCONDITIONAL), tmp_path / "unet.safetensors")
    net = load_latent_diffusion(tmp_path / "model.ckpt", TINY)
    assert net.config.num_classes == 5
    plain = load_latent_diffusion(tmp_path / "unet.safetensors", UNCONDITIONAL)
    assert plain.config.context_channels is None
    with pytest.raises(FileNotFoundError, match="absent"):
        load_latent_diffusion(tmp_path / "absent.ckpt", TINY)


def test_a_pickle_of_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": checkpoint(), "hook": Path("x")}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt"):
        load_latent_diffusion(tmp_path / "evil.ckpt", TINY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"context_dim": None}, "use_spatial_transformer is True, context_dim None; need"),
        ({"use_spatial_transformer": False}, "need True and a number, or False and None"),
        ({"n_embed": 8}, "n_embed is 8; need None"),
        ({"num_classes": 10}, "num_classes is 10 beside a context; need None"),
        ({"channel_mult": (2, 4)}, "channel_mult begins with 2; need 1"),
        ({"out_channels": 3}, "out_channels is 3; need in_channels"),
        ({"num_head_channels": -1}, "num_heads is -1; need an integer >= 1"),
        ({"dims": 3}, "dims is 3; need 2"),
        ({"unknown": 3}, "unknown"),
    ],
)
def test_wrong_config(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        latent_diffusion_config({**TINY, **change})


def test_wrong_classes() -> None:
    with pytest.raises(ValueError, match=r"num_classes is 3, .* has 5 rows; need 5, or one less"):
        load_latent_diffusion(checkpoint(), TINY, num_classes=3)
    other = {**checkpoint(), "cond_stage_model.embedding.weight": torch.zeros(5, 11)}
    with pytest.raises(ValueError, match=r"weight is \[5, 11\]; need a tensor \[classes, 12\]"):
        load_latent_diffusion(other, TINY)
    with pytest.raises(ValueError, match=r"it has no cond_stage_model\.embedding; need one"):
        load_latent_diffusion(tiny_state(), TINY, num_classes=5)


def test_export_of_other_networks_is_refused() -> None:
    with pytest.raises(TypeError, match="need a SlimmableNetwork of an ADMConfig"):
        to_latent_diffusion_state_dict(SlimmableNetwork(preset("digits")))
    config = ADMConfig(image_size=8, ch=32, ch_mult=(1,), attn=(), eps=1e-6, head_channels=16)
    with pytest.raises(ValueError, match=r"eps is 1e-06; need 1e-05, as there"):
        to_latent_diffusion_state_dict(SlimmableNetwork(config))


def test_context_of_another_kind() -> None:
    net = load_latent_diffusion(tiny_state(), TINY)
    x, t = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 500])
    with pytest.raises(ValueError, match="got no context, need one"):
        net(x, t, 1.0)
    for context in (torch.randn(2, 12), torch.randn(2, 3, 11), torch.randn(1, 3, 12),
                    torch.zeros(2, 3, 12, dtype=torch.int64), torch.randn(2, 0, 12)):  # fmt: skip
        with pytest.raises(ValueError, match=r"need floating-point \[2, T, 12\]"):
            net(x, t, 1.0, context=context)
    plain = load_latent_diffusion(tiny_state(UNCONDITIONAL), UNCONDITIONAL)
    with pytest.raises(ValueError, match="got a context, need none"):
        plain(x, t, 1.0, context=torch.randn(2, 3, 12))
