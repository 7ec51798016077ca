"""Between images and what a network has of them: pixels, or the latents of an autoencoder.

An autoencoder is a folder as diffusers' `save_pretrained` writes it, of an AutoencoderKL or a
VQModel: config.json and diffusion_pytorch_model.safetensors. Nothing else in it is read.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn

from ddsm_ext._optional import import_diffusers
from ddsm_ext.data.config import CodecConfig
from ddsm_ext.data.pixels import from_uint8, to_uint8
from ddsm_ext.io.digest import json_digest
from ddsm_ext.io.files import naming, one_line, open_regular, parse_json, read_bytes
from ddsm_ext.io.weights import check_not_pickled, tensor_places
from ddsm_ext.settings import Refusal, check_choice, check_keys, is_int, is_number, shown

CONFIG_FILE, WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"
CLASSES = {"AutoencoderKL": "kl", "VQModel": "vq"}
# Settings of these classes that change nothing of what the network computes
_BESIDE = ("sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std",
           "force_upcast", "lookup_from_codebook")  # fmt: skip
# Largest value of a setting, or of the values of a list; far above any use
_MOST = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": 8192, "layers_per_block": 64,
    "latent_channels": 1024, "norm_num_groups": 8192, "num_vq_embeddings": 2**22,
    "vq_embed_dim": 1024,
}  # fmt: skip
_MOST_LEVELS = 8
_LARGEST_CONFIG = 1 << 20  # bytes
_UNSAID_SCALE = 0.18215


class Decoder(Protocol):
    """What makes images of a network's."""

    def decode(self, images: Tensor) -> Tensor:
        """Return uint8 images [N, C, H, W], on the CPU, of a network's [N, c, h, w]."""


class PixelCodec:
    """Pixels: the network's images are those of the files, from -1 to 1."""

    def decode(self, images: Tensor) -> Tensor:
        """Return uint8 images [N, C, H, W], on the CPU; what is beyond [-1, 1] is clipped."""
        return to_uint8(images).cpu()


@dataclass(frozen=True)
class Codec:
    """Latents of an autoencoder: encodes images, and decodes what a network makes.

    Args:
        network: diffusers' AutoencoderKL or VQModel, frozen, in float32.
        config: what the network of latents is given.
        latent_channels: of a latent.
    """

    network: nn.Module
    config: CodecConfig
    latent_channels: int

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        *,
        expected: CodecConfig | None = None,
        what: str = "autoencoder",
    ) -> Self:
        """Read an autoencoder's folder; no pickle, and nothing from a network.

        The scale is its config's `scaling_factor`, the shift of a KL `shift_factor`. Latents of a
        VQModel whose factor is the 0.18215 that diffusers writes where nobody says it, that of
        KL-f8, are not scaled, as those of latent diffusion were not.

        Args:
            folder: with config.json and diffusion_pytorch_model.safetensors.
            device: where to compute.
            expected: of a run or an archive, whose scale, shift and batch size are taken; the
                autoencoder has to be its. None takes any.
            what: needs it, for errors.

        Raises:
            ImportError: diffusers is not installed, or too old.
            FileNotFoundError: there is no such folder, or a file is missing.
            ValueError: it holds something else, is damaged, or is another autoencoder.
        """
        folder = Path(folder)
        if not folder.is_dir():
            moved = "" if expected is None else ", or codec.folder, where it lies now"
            raise FileNotFoundError(
                f"{folder}: no such folder; need that of an autoencoder, with {CONFIG_FILE} and "
                f"{WEIGHTS_FILE}{moved}"
            )
        content = read_bytes(folder / CONFIG_FILE, "config of an autoencoder")
        name, settings = _settings(content, folder / CONFIG_FILE)
        digest = _digest(name, settings, folder / WEIGHTS_FILE)
        if expected is not None and expected.digest != digest:
            raise Refusal(
                f"{folder}: holds another autoencoder, or a damaged one (SHA-256 {digest[:12]}...; "
                f"the latents are of {str(expected.digest)[:12]}...); need theirs, or "
                "codec.folder, where it lies now"
            )
        network = _network(import_diffusers(what), name, settings, folder)
        kind = CLASSES[name]
        scale, shift = settings.get("scaling_factor"), settings.get("shift_factor")
        if kind == "vq" and scale in (None, _UNSAID_SCALE):
            scale = 1.0
        config = CodecConfig(
            kind=kind,
            folder=str(folder.absolute()),
            digest=digest,
            scale=float(scale or _UNSAID_SCALE),
            shift=float(shift or 0.0) if kind == "kl" else 0.0,
            factor=2 ** (len(settings["block_out_channels"]) - 1),
            image_channels=settings["in_channels"],
        )
        if expected is not None:
            config = replace(expected, folder=config.folder)
        channels: int = settings["latent_channels"]
        if kind == "vq":
            channels = settings.get("vq_embed_dim") or channels
        placed = cast(Any, network).to(device, memory_format=torch.channels_last)
        return cls(placed.eval().requires_grad_(False), config, channels)

    @property
    def parts(self) -> int:
        """Tensors that `encode` gives of an image: mean and log-variance, or the codes."""
        return 2 if self.config.kind == "kl" else 1

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return (c, h, w) of the latents of images (C, H, W).

        Raises:
            ValueError: the images have other channels, or a side that is no multiple of `factor`.
        """
        config, (channels, height, width) = self.config, image_shape
        if channels != config.image_channels:
            raise Refusal(
                f"{config.folder}: takes images of {config.image_channels} channels, got "
                f"{channels}; need data.channels={config.image_channels}, or another autoencoder"
            )
        if height % config.factor or width % config.factor:
            raise Refusal(
                f"{config.folder}: takes sides that are multiples of {config.factor}, got images "
                f"of {height}x{width}; need data.image_size, such a multiple"
            )
        return self.latent_channels, height // config.factor, width // config.factor

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return what is kept of images, neither scaled nor shifted.

        Args:
            images: uint8 [N, C, H, W].

        Returns:
            float32 [N, 2, c, h, w], mean and log-variance, of a KL; [N, 1, c, h, w], the codes
            before they are quantised, of a VQModel.
        """
        device = next(self.network.parameters()).device
        x = from_uint8(images, device).contiguous(memory_format=torch.channels_last)
        found = cast(Any, self.network).encode(x)
        if self.config.kind == "vq":
            return cast(Tensor, found.latents)[:, None]
        return torch.stack([found.latent_dist.mean, found.latent_dist.logvar], dim=1)

    @torch.inference_mode()
    def decode(self, images: Tensor) -> Tensor:
        """Return uint8 images [N, C, H, W], on the CPU, of latents as the network has them.

        A VQModel quantises them first.

        Args:
            images: floating point [N, c, h, w].

        Raises:
            ValueError: an image is not finite.
        """
        config, network = self.config, cast(Any, self.network)
        n, _, *sides = images.shape
        size = (n, config.image_channels or 1, *(side * config.factor for side in sides))
        made = torch.empty(size, dtype=torch.uint8, device="cpu")  # [N, C, H, W]
        for start in range(0, n, config.batch_size):
            rows = slice(start, start + config.batch_size)
            z = images[rows].float() / config.scale + config.shift
            z = z.contiguous(memory_format=torch.channels_last)
            decoded = network.decode(z).sample
            if not bool(torch.isfinite(decoded).all()):
                raise Refusal(f"{config.folder}: a decoded image is not finite; need finite ones")
            made[rows] = to_uint8(decoded).cpu()
        return made

    def settings_for(self, image_size: int) -> CodecConfig:
        """Return the section codec of a run of latents of images of so many pixels a side."""
        return replace(self.config, decode_macs=self.macs(image_size)[1])

    def macs(self, image_size: int) -> tuple[int, int]:
        """Return the MACs of encoding an image, and of decoding one, attention's products included.

        Half of the FLOPs that torch counts, without running anything; the search of the nearest
        codes, which it does not count, is left out.

        Args:
            image_size: pixels a side.
        """
        from torch.utils.flop_counter import FlopCounterMode

        side, counted = image_size // self.config.factor, []
        mine = cast(Any, self.network)
        with torch.device("meta"), torch.no_grad():
            network = type(mine).from_config(mine.config)
            x = torch.empty(1, self.config.image_channels or 1, image_size, image_size)
            z = torch.empty(1, self.latent_channels, side, side)
            for run, given in ((network.encode, x), (network.decode, z)):
                with FlopCounterMode(display=False) as counter:
                    run(given)
                counted.append(counter.get_total_flops() // 2)
        return counted[0], counted[1]


def to_network(moments: Tensor, noise: Tensor | None, config: CodecConfig) -> Tensor:
    """Return latents as a network has them: (z - shift) * scale, z drawn from what was encoded.

    Args:
        moments: [N, 2, c, h, w], mean and log-variance, or [N, 1, c, h, w].
        noise: standard normal [N, c, h, w], by which z is drawn; None takes the mean.
        config: scale and shift.

    Returns:
        float32 [N, c, h, w].
    """
    z = moments[:, 0].float()
    if moments.shape[1] == 2 and noise is not None:
        z = z + noise * (0.5 * moments[:, 1].float()).exp()
    return z.sub(config.shift).mul_(config.scale)


def _settings(content: bytes, path: Path) -> tuple[str, dict[str, Any]]:
    """Class and settings of an autoencoder's config.json."""
    what = "config of an AutoencoderKL or VQModel"
    if len(content) > _LARGEST_CONFIG:
        raise Refusal(f"{path}: is over {_LARGEST_CONFIG} bytes; need a {what}")
    values = parse_json(content, str(path), what)
    if not isinstance(values, Mapping):
        raise Refusal(f"{path}: holds {shown(values)}; need a {what}")
    name = check_choice(f"{path}: _class_name", values.get("_class_name"), CLASSES)
    settings = {key: value for key, value in values.items() if not key.startswith("_")}
    levels = settings.setdefault("block_out_channels", [64])
    if not isinstance(levels, list) or not 1 <= len(levels) <= _MOST_LEVELS:
        raise Refusal(
            f"{path}: block_out_channels is {shown(levels)}; need a list of 1 to {_MOST_LEVELS}"
        )
    settings.setdefault("in_channels", 3)
    settings.setdefault("latent_channels", 4 if name == "AutoencoderKL" else 3)
    for key, most in _MOST.items():
        value = settings.get(key)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not (is_int(number, 1) and number <= most):
                raise Refusal(f"{path}: {key} is {shown(value)}; need whole numbers of 1 to {most}")
    for key in ("scaling_factor", "shift_factor"):
        value = settings.get(key)
        if value is not None and not is_number(value, -1e6, 1e6):
            raise Refusal(f"{path}: {key} is {shown(value)}; need a number")
    taken, made = settings["in_channels"], settings.get("out_channels", 3)
    if taken not in (1, 3) or made != taken:
        raise Refusal(
            f"{path}: takes images of {taken} channels and makes ones of {made}; need 1 and 1, or "
            "3 and 3"
        )
    return name, settings


def _digest(name: str, settings: Mapping[str, Any], weights: Path) -> str:
    """SHA-256 of what an autoencoder computes by: its class, settings and file of weights."""
    check_not_pickled(weights)
    need = f"need an autoencoder's {WEIGHTS_FILE}, a file without pickles"
    what = f"{WEIGHTS_FILE} of an autoencoder, a file without pickles"
    with naming(weights, need), open_regular(weights, what) as file:
        content = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    index = weights.with_name(weights.name + ".index.json")
    if index.exists():  # which diffusers would follow to other files
        raise Refusal(f"{index}: names files of weights; need all in {WEIGHTS_FILE}, without it")
    computed = {key: value for key, value in settings.items() if key not in _BESIDE}
    return json_digest({"class": name, "settings": computed, "weights": content})


def _network(diffusers: Any, name: str, settings: dict[str, Any], folder: Path) -> nn.Module:
    """The autoencoder, after its file was found to hold as many values as its settings say."""
    kind = getattr(diffusers, name)
    known = [key for key in inspect.signature(kind.__init__).parameters if key != "self"]
    check_keys(str(folder / CONFIG_FILE), settings, known)
    need = f"need an autoencoder that diffusers' {name} wrote by save_pretrained"
    try:
        with torch.device("meta"):
            described = kind.from_config(settings)
        wanted = sum(tensor.numel() for tensor in described.state_dict().values())
        with open_regular(folder / WEIGHTS_FILE, "file of weights") as file:
            places, _ = tensor_places(file, str(folder / WEIGHTS_FILE))
        held = sum(math.prod(place.shape) for place in places.values())
        if held != wanted:
            raise Refusal(
                f"{folder}: {WEIGHTS_FILE} holds {held:,} values, {CONFIG_FILE} describes "
                f"{wanted:,}; {need}"
            )
        network, found = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except Refusal:
        raise
    except Exception as error:  # what diffusers, safetensors and torch raise of foreign files
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Refusal(f"{folder}: {one_line(error):.300}; {need}") from None
    wrong = [key for keys in found.values() for key in keys]
    if wrong:
        raise Refusal(f"{folder}: lacks or does not know {shown(wrong[0])}; {need}")
    return cast(nn.Module, network)
