"""Agreement with torch-fidelity (the `metrics` extra) to 1e-6, and its weights file read safely."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from ddsm_ext.eval.distances import StreamingMoments, frechet_distance, kernel_distance
from ddsm_ext.eval.features import make_extractor
from ddsm_ext.eval.fidelity import import_torch_fidelity, inception_score, precision_recall

# Where the tests are run for a submission nothing may be passed over unseen.
installed = importlib.util.find_spec("torch_fidelity") is not None or "CI" in os.environ
needs_torch_fidelity = pytest.mark.skipif(not installed, reason="needs the metrics extra")


def feature_rows(n: int, dim: int, seed: int) -> torch.Tensor:
    """Rows like pooled ReLU features: not negative, correlated, means far from zero."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((dim, dim)) / np.sqrt(dim)
    return torch.from_numpy(np.maximum(rng.standard_normal((n, dim)) @ mixing + 0.3 + seed / 50, 0))


def moments_of(rows: torch.Tensor, batches: int) -> StreamingMoments:
    moments = StreamingMoments(rows.shape[1])
    for part in rows.chunk(batches):
        moments.update(part)
    return moments


@needs_torch_fidelity
@pytest.mark.parametrize(("n", "dim"), [(600, 16), (1500, 200), (120, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frechet_distance_agrees(n: int, dim: int, dtype: torch.dtype) -> None:
    import_torch_fidelity()
    metric_fid = importlib.import_module("torch_fidelity.metric_fid")
    first, second = feature_rows(n, dim, 1).to(dtype), feature_rows(n, dim, 2).to(dtype)
    # Its own mean of fp32 rows is summed in fp32; the statistics are compared in fp64.
    expected = metric_fid.fid_statistics_to_metric(
        metric_fid.fid_features_to_statistics(first.double()),
        metric_fid.fid_features_to_statistics(second.double()),
        False,
    )["frechet_inception_distance"]
    a, b = moments_of(first, 7), moments_of(second, 3)
    got = frechet_distance(a.mean, a.covariance(), b.mean, b.covariance())
    assert got == pytest.approx(expected, rel=1e-6)


@needs_torch_fidelity
@pytest.mark.parametrize(("subsets", "size", "seed"), [(10, 100, 2020), (3, 250, 5)])
def test_kernel_distance_agrees(subsets: int, size: int, seed: int) -> None:
    import_torch_fidelity()
    metric_kid = importlib.import_module("torch_fidelity.metric_kid")
    first, second = feature_rows(300, 64, 1), feature_rows(400, 64, 2)
    expected = metric_kid.kid_features_to_metric(
        first, second, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    got = kernel_distance(first, second, subsets=subsets, subset_size=size, seed=seed)
    assert got.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert got.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)


@needs_torch_fidelity
def test_defaults_are_those_of_torch_fidelity() -> None:
    import_torch_fidelity()
    defaults = importlib.import_module("torch_fidelity.defaults").DEFAULTS
    ours = kernel_distance.__kwdefaults__
    for mine, theirs in (
        ("subsets", "kid_subsets"),
        ("subset_size", "kid_subset_size"),
        ("seed", "rng_seed"),
    ):
        assert ours[mine] == defaults[theirs]
    kernel = [defaults[f"kid_kernel_poly_{name}"] for name in ("degree", "gamma", "coef0")]
    assert kernel == [3, None, 1]  # as in kernel_distance; None means 1 / D


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> str:
    """A state dict of InceptionV3's names and shapes with small random values."""
    if not installed:
        pytest.skip("needs the metrics extra")
    import_torch_fidelity()
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")

    class Shapes(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state, *args, **kwargs):
            return None

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    network = Shapes("shapes", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    return str(path)


def test_inception_features_equal_those_of_torch_fidelity(weights_file: str) -> None:
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    theirs = module.FeatureExtractorInceptionV3(
        "theirs", ["2048"], feature_extractor_weights_path=weights_file
    )
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    extractor = make_extractor(f"inception:{weights_file}")
    got = extractor(images)
    assert got.shape == (2, extractor.dim) == (2, 2048)
    assert torch.equal(got, theirs(images)[0])
    grey = images[:, :1]
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match=r"\[N, 1 or 3, H, W\]"):
        extractor(torch.zeros(1, 2, 8, 8, dtype=torch.uint8))


def test_scores_of_inception_equal_those_of_torch_fidelity(weights_file: str) -> None:
    """Our way from images to scores against its whole way, from the same weights and images."""
    torch_fidelity = import_torch_fidelity()
    rng = np.random.default_rng(0)
    # images of unequal brightness, so that random weights tell them apart
    levels = rng.integers(0, 200, (16, 3, 1, 1))
    images = (levels + rng.integers(0, 56, (16, 3, 16, 16))).astype(np.uint8)
    samples, real = slice(0, 12), slice(4, 16)

    class Images(torch.utils.data.Dataset):
        def __init__(self, images: np.ndarray) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.from_numpy(self.images[index])

    theirs = torch_fidelity.calculate_metrics(
        input1=Images(images[samples]), input2=Images(images[real]), cuda=False, isc=True, prc=True,
        batch_size=12, feature_extractor="inception-v3-compat", save_cpu_ram=True, verbose=False,
        feature_extractor_weights_path=weights_file, cache=False,
    )  # fmt: skip
    extractor = make_extractor(f"inception:{weights_file}")
    rows = extractor(images)
    score = inception_score(extractor.logits(rows[samples]), seed=2020)
    assert score == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    shares = precision_recall(rows[samples], rows[real])
    assert shares == {name: theirs[name] for name in ("precision", "recall")}
    assert 0 < shares["precision"] <= 1


class Evil:
    """Unpickling this would write a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@needs_torch_fidelity
@pytest.mark.parametrize("kind", ["torch", "pickle", "noise", "empty", "list", "other-names"])
def test_hostile_or_foreign_weights_are_refused_and_not_executed(tmp_path, kind: str) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "executed"
    if kind == "torch":
        torch.save({"weight": Evil(str(trace))}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Evil(str(trace))))
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(1000))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    else:
        torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"inception weights .*need"):
        make_extractor(f"inception:{path}")
    assert not trace.exists()


def test_missing_weights_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        make_extractor(f"inception:{tmp_path / 'absent.pth'}")
    with pytest.raises(ValueError, match="inception:<path>"):
        make_extractor("inception")


@pytest.mark.parametrize("error", ["ImportError('it is not there')", "RuntimeError('it is\\nnew')"])
def test_missing_extra_is_named(tmp_path, error: str) -> None:
    (tmp_path / "torchvision.py").write_text(f"raise {error}")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "from ddsm_ext.eval.fidelity import import_torch_fidelity as f; f()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = done.stderr.splitlines()[-1]
    assert message.startswith(
        "ddsm_ext.settings.MissingLibrary: torch_fidelity: it does not import"
    )
    assert message.endswith("need the extra: pip install 'ddsm_ext[metrics]'")


def test_importing_the_package_does_not_import_torch_fidelity() -> None:
    code = "import ddsm_ext.eval.features, sys; print('torch_fidelity' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
