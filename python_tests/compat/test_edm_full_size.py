"""EDM's published networks: names and shapes, parameters, MACs at every width."""

from __future__ import annotations

import json
import math

import pytest
from compat.openai_goldens import read
from compat.test_edm import NCSN

from ddsm_ext.compat.edm import edm_config, edm_state_dict_shapes
from ddsm_ext.graph import layer_macs, macs, parameter_count
from ddsm_ext.models import PRESETS

CIFAR = {"cls": "SongUNet", "img_resolution": 32, "in_channels": 3, "out_channels": 3,
         "augment_dim": 9, "channel_mult": [2, 2, 2], "dropout": 0.13}  # fmt: skip
FULL_SIZE = {
    "EDM_CIFAR_10_DDPM_VP_uncond_augment_9": CIFAR,
    "EDM_CIFAR_10_DDPM_VP_cond_10_augment_9": {**CIFAR, "label_dim": 10},
    "EDM_CIFAR_10_NCSN_VE_uncond": {**CIFAR, **NCSN},
    "EDM_FFHQ_AFHQ_64_DDPM_cres_1_2_2_2": {
        **CIFAR, "img_resolution": 64, "channel_mult": [1, 2, 2, 2], "dropout": 0.05,
    },
    "EDM_ImageNet_64_ADM": {
        "cls": "DhariwalUNet", "img_resolution": 64, "in_channels": 3, "out_channels": 3,
        "label_dim": 1000,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_names_and_shapes(name: str) -> None:
    data, given = read("full_size_shapes"), FULL_SIZE[name]
    shapes = {key: tuple(shape) for key, shape in json.loads(str(data[name])).items()}
    assert edm_state_dict_shapes(given) == shapes
    buffers = ("map_noise.freqs", "resample_filter")
    count = sum(math.prod(s) for n, s in shapes.items() if not n.endswith(buffers))
    null = 4 * 192 if name == "EDM_ImageNet_64_ADM" else 0
    assert parameter_count(edm_config(given)) == count + null


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_macs(name: str) -> None:
    data, config = read("full_size_shapes"), edm_config(FULL_SIZE[name])
    expected = json.loads(str(data["macs"]))[json.loads(str(data["tags"]))[name]]
    for width, counts in expected.items():
        whole = macs(config, float(width))
        products = whole - macs(config, float(width), attention_products=False)
        # The file counts the map of labels as a product, which ours looks up, and a convolution
        # before a filter at the pixels behind it.
        for node in config.graph.nodes:
            if node.op == "embed":
                whole += (node.rows - 1) * config.counts(float(width))[node.index]
            if node.op == "conv" and node.ring:
                pixels = ((node.size or 0) - 2) ** 2 // 4
                run = layer_macs(config, float(width)).get(node.name, 0)
                whole -= run - run * pixels // node.pixels
        assert round(whole / 1e9, 3) == counts["gmac"]
        assert round((whole - products) / 1e9, 3) == counts["gmac_without_attention_products"]


def test_presets_are_the_full_size_networks() -> None:
    for name, full_size in (
        ("edm-cifar10-vp", "EDM_CIFAR_10_DDPM_VP_uncond_augment_9"),
        ("edm-cifar10-ve", "EDM_CIFAR_10_NCSN_VE_uncond"),
        ("edm-ffhq64", "EDM_FFHQ_AFHQ_64_DDPM_cres_1_2_2_2"),
        ("edm-imagenet64", "EDM_ImageNet_64_ADM"),
    ):
        assert PRESETS[name] == edm_config(FULL_SIZE[full_size])
