"""Sample archives: numpy's own files are read, ours are read by numpy, others are refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import load_dataset
from ddsm_ext.data.sample_archive import read_sample_archive, write_sample_archive

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1, 2, 0])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpys_archives_are_data_sets(save, tmp_path: Path) -> None:
    save(tmp_path / "samples.npz", IMAGES, LABELS.astype(np.int32))
    found = load_dataset(DataConfig(source=str(tmp_path / "samples.npz"), image_size=8))
    assert np.array_equal(found.images, IMAGES.transpose(0, 3, 1, 2))
    assert found.labels is not None
    assert found.labels.tolist() == LABELS.tolist()
    assert found.class_names == ("0", "1", "2")
    assert found.name == "samples"


def test_images_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", IMAGES[..., :1])
    found = read_sample_archive(tmp_path / "s.npz")
    assert np.array_equal(found.images, IMAGES[..., :1])
    assert found.labels is None


def test_statistics_beside_images_are_passed_over(tmp_path: Path) -> None:
    """A reference of ADM has both."""
    np.savez(tmp_path / "s.npz", arr_0=IMAGES, mu=np.zeros(3), odd=np.array([{}]))
    assert np.array_equal(read_sample_archive(tmp_path / "s.npz").images, IMAGES)


def test_numpy_reads_ours(tmp_path: Path) -> None:
    file = write_sample_archive(tmp_path / "s.npz", IMAGES, LABELS)
    with np.load(file, allow_pickle=False) as found:
        assert set(found.files) == {"arr_0", "arr_1"}
        assert np.array_equal(found["arr_0"], IMAGES)
        assert np.array_equal(found["arr_1"], LABELS)
    assert np.array_equal(read_sample_archive(file).images, IMAGES)
    with pytest.raises(ValueError, match="does not end in"):
        write_sample_archive(tmp_path / "s.zip", IMAGES)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "holds mu.npy; need"),
        ({"arr_0": IMAGES.astype(np.float32)}, "arr_0 is float32"),
        ({"arr_0": IMAGES[0]}, r"arr_0 is uint8 \[8, 8, 3\]"),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2)}, r"arr_0 is uint8 \[6, 3, 8, 8\]"),
        ({"arr_0": np.array([{}, 1])}, "arr_0 is object"),
        ({"arr_0": np.asfortranarray(IMAGES)}, "not as it is stored"),
        ({"arr_0": IMAGES, "arr_1": LABELS[:3]}, r"arr_1 is int64 \[3\] beside 6 images"),
        ({"arr_0": IMAGES, "arr_1": LABELS * 1.0}, "arr_1 is float64"),
        ({"arr_0": IMAGES, "arr_1": LABELS - 1}, "labels are -1 to 1"),
    ],
)
def test_other_arrays_are_refused(arrays, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        read_sample_archive(tmp_path / "s.npz")
    assert "\n" not in str(caught.value)


def entry(shape: tuple[int, ...], content: bytes) -> bytes:
    """An array as a file says it, with another content."""
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entry((10**9, 64, 64, 3), b"x" * 99), "not as it is stored"),
        (entry((1, 2, 2, 3), b"x" * 11), "not as it is stored"),
        (entry((300, 512, 512, 3), bytes(300 * 512 * 512 * 3)), "unpacks to 235929600 bytes"),
        (b"\x93NUMPY\x09\x00", r"arr_0 has format \(9, 0\)"),
        (b"nothing", "need an archive of samples"),
    ],
    ids=["huge", "short", "bomb", "format", "no array"],
)
def test_hostile_entries_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", content)
    with pytest.raises(ValueError, match=message):
        read_sample_archive(tmp_path / "s.npz")


@pytest.mark.parametrize("cut", [0, 10, 500, -30])
def test_damaged_files_are_refused(cut: int, tmp_path: Path) -> None:
    file = write_sample_archive(tmp_path / "s.npz", IMAGES, LABELS)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"s.npz: .*need an archive of samples"):
        read_sample_archive(file)
