"""The autoencoders of latents: goldens of diffusers, what is counted, what is refused."""

from __future__ import annotations

import importlib.util
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data.made_autoencoders import DIFFUSERS, formula_network, save_autoencoder, small_settings
from golden import golden

from ddsm_ext.data.codec import CONFIG_FILE, WEIGHTS_FILE, Codec, PixelCodec, to_network
from ddsm_ext.data.config import CodecConfig
from ddsm_ext.data.pixels import to_uint8
from ddsm_ext.settings import MissingLibrary, Refusal

GOLDENS = {"kl": "diffusers_autoencoder_kl", "vq": "diffusers_vqmodel"}


@pytest.fixture(scope="module", params=["kl", "vq"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp(kind), kind)


def test_goldens(kind: str, tmp_path: Path) -> None:
    """What was saved and loaded encodes and decodes as diffusers did in float64."""
    expected = golden(GOLDENS[kind])
    formula_network(str(expected["config"])).float().save_pretrained(tmp_path)
    codec = Codec.load(tmp_path)
    x, decoded = (torch.from_numpy(expected[name]) for name in ("x", "decoded"))
    names = ("mean", "logvar") if kind == "kl" else ("latents",)
    wanted = torch.stack([torch.from_numpy(expected[name]) for name in names], dim=1)
    assert codec.latent_shape((3, 16, 16)) == tuple(wanted.shape[2:])
    with torch.no_grad():
        found = codec.network.encode(x.float())
        made = codec.network.decode(wanted[:, 0].float()).sample
    parts = [found.latent_dist.mean, found.latent_dist.logvar] if kind == "kl" else [found.latents]
    assert torch.allclose(torch.stack(parts, 1).double(), wanted, rtol=1e-4, atol=1e-4)
    assert torch.allclose(made.double(), decoded, rtol=1e-4, atol=1e-4)

    given = to_network(wanted.float(), None, codec.config)
    found = codec.decode(given).int()
    assert (found - to_uint8(decoded).int()).abs().max() <= 1
    if kind == "vq":  # it is quantised first
        unlike = torch.from_numpy(expected["decoded_no_quantise"])
        assert (found - to_uint8(unlike).int()).abs().max() > 1


def test_encoding_of_pixels(kind: str, folder: Path) -> None:
    codec = Codec.load(folder)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8))
    found = codec.encode(images)
    exact = Codec.load(folder).network.double()
    with torch.no_grad():
        of = exact.encode(images.double() / 127.5 - 1.0)
    wanted = of.latent_dist.mean if kind == "kl" else of.latents
    assert found.shape == (5, codec.parts, *codec.latent_shape((1, 8, 8)))
    assert torch.allclose(found[:, 0].double(), wanted, rtol=1e-4, atol=1e-5)
    if kind == "kl":
        assert torch.allclose(found[:, 1].double(), of.latent_dist.logvar, rtol=1e-4, atol=1e-5)
    assert torch.allclose(codec.encode(images[:1]), found[:1], rtol=1e-5, atol=1e-5)


def test_scale_and_shift_of_the_folder(kind: str, folder: Path) -> None:
    """A KL's are those of its config; a VQModel's latents are not scaled, whatever it says."""
    config = Codec.load(folder).config
    wanted = (0.7, 0.1) if kind == "kl" else (1.0, 0.0)
    assert (config.kind, config.scale, config.shift) == (kind, *wanted)
    assert (config.factor, config.image_channels) == (2, 1)


def test_what_a_network_has_of_latents() -> None:
    config = CodecConfig("kl", "x", "x", scale=2.0, shift=0.5, factor=2, image_channels=1)
    moments = torch.tensor([[[1.0, -1.0], [0.0, 2.0]]])[..., None, None]  # [1, 2, 2, 1, 1]
    noise = torch.tensor([[3.0, 1.0]])[..., None, None]
    found = to_network(moments, noise, config).flatten().tolist()
    assert found == pytest.approx([2 * (1 + 3 - 0.5), 2 * (-1 + np.exp(1.0) - 0.5)])
    assert to_network(moments, None, config).flatten().tolist() == [1.0, -3.0]
    codes = torch.tensor([[[1.0, -1.0]]])[..., None, None].half()
    assert to_network(codes, noise, replace(config, kind="vq")).flatten().tolist() == [1.0, -3.0]


def test_decoding_in_batches(folder: Path) -> None:
    codec = Codec.load(folder)
    latents = torch.randn(5, *codec.latent_shape((1, 8, 8)), generator=torch.manual_seed(0))
    whole = Codec(codec.network, replace(codec.config, batch_size=5), codec.latent_channels)
    parts = Codec(codec.network, replace(codec.config, batch_size=2), codec.latent_channels)
    assert parts.decode(latents).shape == (5, 1, 8, 8)
    difference = parts.decode(latents).int() - whole.decode(latents).int()
    assert difference.abs().max() <= 1
    assert parts.decode(latents[:0]).shape == (0, 1, 8, 8)
    with pytest.raises(Refusal, match="a decoded image is not finite"):
        parts.decode(latents * torch.nan)


def test_pixels_are_decoded_by_rounding() -> None:
    images = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5)
    assert PixelCodec().decode(images).flatten().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("name", "levels", "more", "encode", "decode"),
    [
        ("VQModel", [128, 256, 512], {"latent_channels": 3}, 172.6, 335.3),
        ("AutoencoderKL", [128, 256, 512, 512], {"latent_channels": 4}, 136.4, 311.1),
    ],
)
def test_macs_of_the_published_autoencoders(
    name: str, levels: list[int], more: dict[str, int], encode: float, decode: float
) -> None:
    """VQ-f4 and KL-f8 of latent diffusion at 256x256, attention's products included."""
    count = len(levels)
    with torch.device("meta"):
        network = getattr(DIFFUSERS, name)(
            block_out_channels=levels, layers_per_block=2, **more,
            down_block_types=["DownEncoderBlock2D"] * count,
            up_block_types=["UpDecoderBlock2D"] * count,
        )  # fmt: skip
    config = CodecConfig("vq", "x", "x", factor=2 ** (count - 1), image_channels=3)
    codec = Codec(network, config, more["latent_channels"])
    assert [round(macs / 1e9, 1) for macs in codec.macs(256)] == [encode, decode]
    assert codec.settings_for(256).decode_macs == codec.macs(256)[1]


def test_images_that_do_not_fit_are_refused(folder: Path) -> None:
    codec = Codec.load(folder)
    with pytest.raises(Refusal, match=r"takes images of 1 channels, got 3; need data\.channels=1"):
        codec.latent_shape((3, 8, 8))
    with pytest.raises(Refusal, match=r"multiples of 2, got images of 9x9; need data\.image_size"):
        codec.latent_shape((1, 9, 9))


def test_another_autoencoder_is_refused(kind: str, folder: Path, tmp_path: Path) -> None:
    """By its weights, wherever it lies; scale, shift and batch size are the run's."""
    config = replace(Codec.load(folder).config, scale=3.0, batch_size=7)
    moved = save_autoencoder(tmp_path / "moved", kind)
    assert Codec.load(moved, expected=config).config == replace(config, folder=str(moved))
    other = save_autoencoder(tmp_path / "other", kind, seed=1)
    with pytest.raises(Refusal, match=r"holds another autoencoder, or a damaged one .*SHA-256"):
        Codec.load(other, expected=config)
    data = bytearray((moved / WEIGHTS_FILE).read_bytes())
    for at in np.random.default_rng(0).integers(0, len(data), 20).tolist():
        data[at] ^= 1
        (moved / WEIGHTS_FILE).write_bytes(data)
        with pytest.raises(Refusal, match=r"another autoencoder|no header|is not JSON|header"):
            Codec.load(moved, expected=config)
        data[at] ^= 1


def changed_config(folder: Path, **changes: object) -> Path:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_class_name": "AutoencoderDC"}, "_class_name is 'AutoencoderDC'; need one of"),
        ({"_class_name": ["AutoencoderKL"]}, "_class_name is"),
        ({"block_out_channels": [10**12, 8]}, "block_out_channels is .*need whole numbers of 1 to"),
        ({"block_out_channels": [8] * 99}, "block_out_channels is .*need a list of 1 to 8"),
        ({"layers_per_block": 10**9}, "layers_per_block is 1000000000; need whole numbers"),
        ({"latent_channels": -1}, "latent_channels is -1; need whole numbers"),
        ({"in_channels": 2, "out_channels": 2}, "takes images of 2 channels and makes ones of 2"),
        ({"out_channels": 3}, "takes images of 1 channels and makes ones of 3; need 1 and 1"),
        ({"quantization_config": {}}, "unknown key 'quantization_config'"),
        ({"norm_num_groups": 3}, "need an autoencoder that diffusers' "),
        ({"down_block_types": ["os.system", "x"]}, "need an autoencoder that diffusers' "),
        ({"block_out_channels": [8, 16]}, "values, config.json describes"),
        ({"scaling_factor": "much"}, "scaling_factor is 'much'; need a number"),
    ],
)
def test_evil_configs_are_refused(
    changes: dict[str, object], sentence: str, kind: str, tmp_path: Path
) -> None:
    folder = changed_config(save_autoencoder(tmp_path / "evil", kind), **changes)
    with pytest.raises(Refusal, match=sentence):
        Codec.load(folder)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{" * 10**5, b'{"a": 1, "a": 2}', b"\xff\xfe"])
def test_configs_that_are_none_are_refused(content: bytes, kind: str, tmp_path: Path) -> None:
    folder = save_autoencoder(tmp_path / "evil", kind)
    (folder / CONFIG_FILE).write_bytes(content)
    with pytest.raises(Refusal, match=CONFIG_FILE):
        Codec.load(folder)


def test_evil_files_of_weights_are_refused(kind: str, tmp_path: Path) -> None:
    folder = save_autoencoder(tmp_path / "evil", kind)
    path = folder / WEIGHTS_FILE
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    for content in (
        b"",
        whole[:7],
        whole[: header - 3],
        whole[:-100],
        b"\xff" * 64,
        struct.pack("<Q", 2**60) + whole[8:],
        whole[8:],
        b"\x80\x02" + whole,
    ):
        path.write_bytes(content)
        with pytest.raises(Refusal, match=WEIGHTS_FILE):
            Codec.load(folder)
    path.write_bytes(whole)
    (folder / f"{WEIGHTS_FILE}.index.json").write_text("{}")
    with pytest.raises(Refusal, match="names files of weights; need all in"):
        Codec.load(folder)


def test_pickles_are_never_read(kind: str, tmp_path: Path) -> None:
    """A folder with a .bin alone, as older versions of diffusers wrote it."""
    folder = save_autoencoder(tmp_path / "old", kind)
    (folder / WEIGHTS_FILE).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(
        Refusal, match=f"holds its weights as a pickle; need {WEIGHTS_FILE}, as dif"
    ):
        Codec.load(folder)


def test_weights_by_other_names_are_refused(kind: str, tmp_path: Path) -> None:
    """As many values as the config describes, but not those."""
    from safetensors.torch import load_file, save_file

    folder = save_autoencoder(tmp_path / "evil", kind)
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors["encoder.conv_in.other"] = tensors.pop("encoder.conv_in.weight")
    save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(Refusal, match=r"lacks or does not know 'encoder\.conv_in"):
        Codec.load(folder)


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder; need .*safetensors$"):
        Codec.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=CONFIG_FILE):
        Codec.load(tmp_path)


def test_without_diffusers_the_command_that_installs_it_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "diffusers" else find(name)
    )
    with pytest.raises(MissingLibrary, match=r"pip install 'ddsm_ext\[diffusers\]'"):
        Codec.load(folder)


def test_the_small_autoencoders_of_the_tests_are_small(kind: str, folder: Path) -> None:
    codec = Codec.load(folder)
    assert sum(p.numel() for p in codec.network.parameters()) < 20_000
    assert codec.latent_channels == small_settings(kind)["latent_channels"]
    assert not any(p.requires_grad for p in codec.network.parameters())
