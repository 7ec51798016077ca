"""Statistics files: what other programs write is read, what they must not do is refused."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from ddsm_ext.eval.statistics import ReferenceStatistics, load_statistics, save_statistics


def statistics(dim: int = 5, **extra) -> ReferenceStatistics:
    x = np.random.default_rng(0).standard_normal((50, dim))
    return ReferenceStatistics(x.mean(axis=0), np.cov(x, rowvar=False), **extra)


def test_round_trip_keeps_every_field(tmp_path) -> None:
    rows = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32)
    written = statistics(
        n=50, features="digits-classifier", digest="ab12", rows=rows, rows_drawn="reservoir"
    )
    again = load_statistics(save_statistics(tmp_path / "ref.npz", written))
    assert np.array_equal(again.mu, written.mu)
    assert np.array_equal(again.sigma, written.sigma)
    assert (again.n, again.features, again.digest) == (50, "digits-classifier", "ab12")
    assert np.array_equal(again.rows, rows)
    assert again.rows_drawn == "reservoir"
    assert again.dim == 5


def test_rows_that_may_be_the_first_ones_are_warned_about(tmp_path, caplog) -> None:
    rows = np.zeros((7, 5), np.float32)
    for n, extra in ((50, {"rows": rows}), (None, {"rows": rows})):
        caplog.clear()
        load_statistics(save_statistics(tmp_path / "old.npz", statistics(n=n, **extra)))
        assert [record.name for record in caplog.records] == ["ddsm_ext.eval.statistics"]
        assert "do not say how their 7 rows were drawn" in caplog.text
    caplog.clear()
    for extra in ({"n": 7, "rows": rows}, {"n": 50}, {"rows": rows, "rows_drawn": "reservoir"}):
        load_statistics(save_statistics(tmp_path / "good.npz", statistics(**extra)))
    assert not caplog.records


def test_rows_in_an_unknown_order_are_shuffled_alike_each_time(tmp_path) -> None:
    """All images kept, sorted by class: the first ones alone would be of one class."""
    rows = np.repeat(np.arange(10, dtype=np.float32), 50)[:, None].repeat(5, axis=1)
    path = save_statistics(tmp_path / "old.npz", statistics(n=500, rows=rows))
    found = load_statistics(path).rows
    assert np.array_equal(np.sort(found, axis=0), rows)
    counts = np.bincount(found[:100, 0].astype(int), minlength=10)
    assert counts.min() >= 3
    assert np.array_equal(load_statistics(path).rows, found)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("drawn", [{}, {"rows_drawn": "reservoir"}])
def test_rows_of_any_float_type_are_read_as_float32(tmp_path, dtype, drawn) -> None:
    path, made = tmp_path / "ref.npz", statistics()
    rows = np.arange(35, dtype=dtype).reshape(7, 5)
    np.savez(path, mu=made.mu, sigma=made.sigma, rows=rows, **drawn)
    found = load_statistics(path).rows
    assert found.dtype == np.float32
    assert np.array_equal(np.sort(found, axis=0), rows)


def test_a_digest_tells_contents_apart(tmp_path) -> None:
    rows = np.ones((7, 5), np.float32)
    made = statistics(n=50, rows=rows, rows_drawn="reservoir")
    again = load_statistics(save_statistics(tmp_path / "ref.npz", made))
    assert again.content_digest == made.content_digest
    others = [
        dataclasses.replace(made, mu=made.mu + 1e-12),
        dataclasses.replace(made, sigma=made.sigma * 2),
        dataclasses.replace(made, rows=2 * rows),
        dataclasses.replace(made, rows=None),
        made,
    ]
    assert len({each.content_digest for each in others}) == 5


def test_files_of_adm_and_edm_are_read(tmp_path) -> None:
    """ADM: mu, sigma, mu_s, sigma_s; EDM: mu, sigma. Neither says n or the extractor."""
    path, expected = tmp_path / "adm.npz", statistics()
    np.savez(
        path, mu=expected.mu.astype(np.float32), sigma=expected.sigma, mu_s=[1.0], sigma_s=[[1.0]]
    )
    read = load_statistics(path)
    assert read.mu.dtype == read.sigma.dtype == np.float64
    assert np.allclose(read.mu, expected.mu, atol=1e-6)
    assert (read.n, read.features, read.digest, read.rows) == (None, None, None, None)


def test_written_files_are_read_by_plain_numpy(tmp_path) -> None:
    path = save_statistics(tmp_path / "ref.npz", statistics(n=50, features="x"))
    with np.load(path, allow_pickle=False) as archive:
        assert sorted(archive.files) == ["features", "mu", "n", "sigma"]
        assert archive["sigma"].shape == (5, 5)


class Evil:
    """Unpickling this would write a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def archive(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in entries.items():
            target.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def huge_header() -> bytes:
    """An array header that claims 32 TB, with no data behind it."""
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (2000000, 2000000), }"
    text += b" " * (118 - len(text) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def evil_files(trace: str) -> dict[str, bytes]:
    objects = np.array([Evil(trace)], dtype=object)
    good = npy(np.zeros(2))
    return {
        "object-array": archive(mu=npy(objects), sigma=npy(np.eye(2))),
        "pickle": pickle.dumps(Evil(trace)),
        "plain-npy": npy(np.zeros(3)),
        "object-npy": npy(objects),
        "entry-is-pickle": archive(mu=pickle.dumps(Evil(trace)), sigma=npy(np.eye(2))),
        "noise": np.random.default_rng(0).bytes(500),
        "empty": b"",
        "huge-header": archive(mu=good, sigma=huge_header()),
        "truncated-entry": archive(mu=good[:-4], sigma=npy(np.eye(2))),
        "code-in-header": archive(mu=good.replace(b"'<f8'", b"open("), sigma=npy(np.eye(2))),
    }


@pytest.mark.parametrize("kind", sorted(evil_files("")))
def test_hostile_files_are_refused_and_not_executed(tmp_path, kind: str) -> None:
    trace, path = tmp_path / "executed", tmp_path / "evil.npz"
    path.write_bytes(evil_files(str(trace))[kind])
    with pytest.raises(ValueError, match=r"statistics .*evil\.npz.*need"):
        load_statistics(path)
    assert not trace.exists()


def test_every_truncation_is_refused(tmp_path) -> None:
    path = save_statistics(tmp_path / "ref.npz", statistics(n=50))
    data = path.read_bytes()
    for size in np.linspace(0, len(data) - 1, 50).astype(int):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="statistics"):
            load_statistics(path)


def test_an_archive_that_unpacks_too_large_is_refused_unread(tmp_path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        target.writestr("mu.npy", npy(np.zeros(2)))
    data = bytearray(path.read_bytes())
    # The uncompressed size in the central directory: 24 bytes after its signature.
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="unpacks to 4294967280 bytes"):
        load_statistics(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, "holds arr_0, not mu and sigma"),
        ({"mu": np.zeros(3)}, "not sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"\(3,\), sigma \(4, 4\)"),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, r"\(3, 1\)"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "1 <= D"),
        ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "int64"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "floats"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "finite"),
        (
            {"mu": np.full(3, 1e200), "sigma": np.eye(3)},
            r"ref\.npz: the mean has a value of 1e\+200",
        ),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, r"ref\.npz: .* an eigenvalue of -1; need none"),
        ({"mu": np.zeros(3), "sigma": np.tri(3)}, r"ref\.npz: .* differs from its transpose by 1"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "rows": np.array([[1e39]])}, "finite in float32"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "rows": np.zeros((4, 2))}, r"\[M, 3\]"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "rows_drawn": np.zeros(())}, "rows_drawn is fl"),
    ],
)
def test_wrong_contents_are_named(tmp_path, arrays, message: str) -> None:
    path = tmp_path / "ref.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        load_statistics(path)


def test_a_refused_write_keeps_what_was_there(tmp_path) -> None:
    path = save_statistics(tmp_path / "ref.npz", statistics())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="finite"):
        save_statistics(path, ReferenceStatistics(np.full(3, np.inf), np.eye(3)))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["ref.npz"]
    with pytest.raises(ValueError, match=r"\.npz"):
        save_statistics(tmp_path / "ref.txt", statistics())
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_statistics(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    "beside",
    [
        {"n": np.float64(50_000)},
        {"n": np.array([50_000])},
        {"n": "50000"},
        {"n": np.zeros(10_000, int)},
        {"features": np.ones((10, 3))},
        {"features": np.ones((1000, 3))},
        {"features": np.array(["inception"])},
    ],
)
def test_keys_of_others_that_are_called_as_ours_are_passed_over(tmp_path, caplog, beside) -> None:
    path = tmp_path / "ref.npz"
    np.savez(path, mu=np.arange(3.0), sigma=np.eye(3), **beside)
    found = load_statistics(path)
    assert (found.mu.tolist(), found.n, found.features) == ([0.0, 1.0, 2.0], None, None)
    (said,) = caplog.messages
    assert f"ref.npz: {next(iter(beside))} " in said
    assert said.endswith("passed over")


def test_only_entries_that_are_read_count_as_too_large(tmp_path) -> None:
    """ADM's files hold the images beside their moments: of 512 pixels 7.9 GB."""
    path = tmp_path / "ref.npz"
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2), arr_0=np.zeros((2, 2), np.uint8))
    data = bytearray(path.read_bytes())
    # The uncompressed size in the central directory: 22 bytes before the entry's name there.
    at = data.rindex(b"arr_0.npy") - 22
    data[at : at + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("arr_0.npy").file_size == 0xFFFFFFF0
    assert load_statistics(path).dim == 2


def test_a_file_that_cannot_be_read_is_not_damaged(tmp_path, monkeypatch) -> None:
    path = tmp_path / "ref.npz"
    save_statistics(path, ReferenceStatistics(np.zeros(3), np.eye(3), 9))

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(zipfile, "_EndRecData", fails)
    with pytest.raises(OSError, match="need a file of statistics that can be read") as error:
        load_statistics(path)
    assert (error.value.errno, error.value.filename) == (errno.EIO, str(path))
