"""Families by name, and the presets of all of them."""

from __future__ import annotations

import json

import pytest

from ddsm_ext.graph import macs, parameter_count
from ddsm_ext.models.families import FAMILIES, PRESETS, family_named, preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_json(name: str) -> None:
    config = preset(name)
    values = json.loads(json.dumps(config.to_dict()))
    assert FAMILIES[values["family"]].from_dict(values) == config
    assert config.widths == (1.0, 0.75, 0.5, 0.25)


@pytest.mark.parametrize(
    # Millions of parameters, G MACs with the products of attention at the four widths and, at the
    # full one, without: counted in the layers of the published networks.
    ("name", "millions", "giga", "without"),
    [
        ("iddpm-cifar10", 52.55, (8.387, 4.766, 2.162, 0.573), 8.137),
        ("adm-imagenet64", 295.90, (109.678, 63.670, 29.085, 8.684), 103.462),
        ("edm-cifar10-vp", 55.73, (21.190, 11.953, 5.343, 1.358), 21.020),
    ],
)
def test_presets_of_published_networks(
    name: str, millions: float, giga: tuple[float, ...], without: float
) -> None:
    config = preset(name)
    assert round(parameter_count(config) / 1e6, 2) == millions
    for width, expected in zip(config.widths, giga, strict=True):
        assert round(macs(config, width) / 1e9, 3) == expected
    assert round(macs(config, 1.0, attention_products=False) / 1e9, 3) == without


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ValueError, match="unknown preset 'cifar'; did you mean cifar10"):
        preset("cifar")
    with pytest.raises(ValueError, match=r"family is 'amd'; need one of .*; did you mean adm"):
        family_named("amd")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_not_another(name: str) -> None:
    config = next(config for config in PRESETS.values() if config.to_dict()["family"] == name)
    for other in {*FAMILIES} - {name}:
        with pytest.raises(ValueError, match=f"family is '{other}'; need one of '{name}'"):
            type(config).from_dict({**config.to_dict(), "family": other})
