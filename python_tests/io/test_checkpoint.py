"""Checkpoints: whole or not there, and every damage is seen."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import subprocess
import threading
import time

import pytest
import torch

from ddsm_ext.io.checkpoint import (
    MANIFEST,
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    newest_complete,
    save_checkpoint,
)


def groups(seed: int, size: int = 50) -> dict[str, dict[str, torch.Tensor]]:
    stream = torch.Generator().manual_seed(seed)
    return {
        "model": {"a.weight": torch.randn(size, 3, generator=stream), "b": torch.tensor(seed)},
        "ema": {"a.weight": torch.randn(size, 3, generator=stream)},
        "optim": {"exp_avg.a.weight": torch.randn(size, 3, generator=stream)},
    }


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for group, tensors in expected.items():
        assert found[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[group][name].dtype == tensor.dtype
            assert torch.equal(found[group][name], tensor)


def names(run) -> list[str]:
    return [path.name for path in list_checkpoints(run)]


def test_layout_and_round_trip(tmp_path):
    path = save_checkpoint(tmp_path, 500, groups(1), {"note": "é", "x": 0.1})
    assert path == tmp_path / "checkpoints" / "step-000500"
    assert sorted(os.listdir(path)) == [
        MANIFEST,
        "ema.safetensors",
        "model.safetensors",
        "optim.safetensors",
        "state.json",
    ]
    checkpoint = load_checkpoint(path)
    assert_equal(checkpoint.tensors, groups(1))
    assert checkpoint.step == 500
    assert checkpoint.state == {"note": "é", "x": 0.1, "step": 500}
    assert load_checkpoint(path, ["ema"]).tensors.keys() == {"ema"}


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_manifest_agrees_with_sha256sum(tmp_path):
    path = save_checkpoint(tmp_path, 1, groups(1), {})
    check = subprocess.run(
        ["sha256sum", "--strict", "-c", MANIFEST], cwd=path, capture_output=True, check=True
    )
    assert check.stdout.count(b": OK") == 4


def test_any_layout_and_dtype(tmp_path):
    model = {
        "channels_last": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 5).T,
        "slice": torch.randn(8, 8)[:3, :5],
        "empty": torch.empty(0, 3),
        "bf16": torch.randn(3).bfloat16(),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    path = save_checkpoint(tmp_path, 1, {"model": model}, {})
    plain = {name: tensor.detach() for name, tensor in model.items()}
    assert_equal(load_checkpoint(path).tensors, {"model": plain})


def test_keep(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, groups(step), {}, keep=2)
    assert names(tmp_path) == ["step-000004", "step-000005"]
    assert not [n for n in os.listdir(tmp_path / "checkpoints") if n.startswith(".")]


class Damaging(dict):
    """Tensors that are read for writing once the model's file lies on the disk damaged."""

    def __init__(self, tensors, run):
        super().__init__(tensors)
        self.run = run

    def items(self):
        for written in self.run.glob("checkpoints/.new-*/model.safetensors"):
            written.write_bytes(b"\0" + written.read_bytes()[1:])
        return super().items()


def test_old_ones_stay_until_the_new_one_is_verified(tmp_path):
    save_checkpoint(tmp_path, 1, groups(1), {}, keep=1)
    new = groups(2)
    new["optim"] = Damaging(new["optim"], tmp_path)
    with pytest.raises(CheckpointError, match="SHA-256"):
        save_checkpoint(tmp_path, 2, new, {}, keep=1)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]


@contextlib.contextmanager
def short_files():
    """No file may grow past 100 bytes, as on a disk that is full; the test's own log is one too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_keeps_old_ones(tmp_path):
    save_checkpoint(tmp_path, 1, groups(1), {}, keep=1)
    with short_files(), pytest.raises(OSError, match="File too large"):
        save_checkpoint(tmp_path, 2, groups(2), {}, keep=1)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]


def test_newest_complete_passes_over_damaged_ones_with_a_sentence(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, groups(step), {}, keep=3)
    folder = tmp_path / "checkpoints"
    (folder / "step-000003" / "ema.safetensors").unlink()
    data = bytearray((folder / "step-000002" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "step-000002" / "model.safetensors").write_bytes(data)
    said: list[str] = []
    assert newest_complete(tmp_path, on_damage=said.append) == folder / "step-000001"
    assert "step-000003: ema.safetensors is missing" in said[0]
    assert "step-000002: model.safetensors does not match its SHA-256" in said[1]
    with pytest.warns(UserWarning, match="taking the next older one"):
        newest_complete(tmp_path)


def test_none_without_checkpoints(tmp_path):
    assert newest_complete(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_checkpoint(tmp_path / "checkpoints" / "step-000001")


def test_a_reader_meets_a_whole_one_while_a_training_rotates(tmp_path):
    """With a single one kept, what a reader found is gone before it is read, again and again."""
    save_checkpoint(tmp_path, 0, groups(0), {}, keep=1)
    ended = threading.Event()

    def train():
        for step in range(1, 60):
            save_checkpoint(tmp_path, step, groups(step), {}, keep=1)
        ended.set()

    training = threading.Thread(target=train)
    training.start()
    steps = []
    while not ended.is_set():
        checkpoint = load_newest(tmp_path, ("model",))
        assert int(checkpoint.tensors["model"]["b"]) == checkpoint.step
        steps.append(checkpoint.step)
    training.join()
    assert steps == sorted(steps)
    assert len(set(steps)) > 5


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path):
    save_checkpoint(tmp_path, 1, groups(1), {})
    damaged = save_checkpoint(tmp_path, 2, groups(2), {})
    (damaged / MANIFEST).unlink()
    save_checkpoint(tmp_path, 2, groups(5), {})
    assert_equal(load_checkpoint(damaged).tensors, groups(5))


def test_a_whole_one_of_the_same_step_is_never_replaced(tmp_path):
    path = save_checkpoint(tmp_path, 2, groups(2), {})
    assert save_checkpoint(tmp_path, 2, groups(2), {}) == path
    with pytest.raises(ValueError, match="already holds another checkpoint"):
        save_checkpoint(tmp_path, 2, groups(3), {})
    assert_equal(load_checkpoint(path).tensors, groups(2))
    assert os.listdir(tmp_path / "checkpoints") == ["step-000002"]


def test_later_damaged_ones_do_not_push_out_whole_ones(tmp_path):
    save_checkpoint(tmp_path, 1, groups(1), {})
    (save_checkpoint(tmp_path, 9, groups(9), {}) / MANIFEST).unlink()
    save_checkpoint(tmp_path, 2, groups(2), {}, keep=2)
    assert names(tmp_path) == ["step-000001", "step-000002", "step-000009"]


@pytest.mark.parametrize(
    ("step", "tensors", "keep"),
    [(-1, {}, 1), (1, {}, 0), (1, {"../x": {}}, 1), (1, {"state": {}}, 1)],
)
def test_bad_arguments(tmp_path, step, tensors, keep):
    with pytest.raises(ValueError, match="save_checkpoint: "):
        save_checkpoint(tmp_path, step, tensors, {}, keep=keep)
    assert not (tmp_path / "checkpoints").exists()


def test_state_without_json_form_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        save_checkpoint(tmp_path, 1, groups(1), {"loss": float("nan")})
    with pytest.raises(TypeError, match=r"model\['x'\] is list; need a tensor"):
        save_checkpoint(tmp_path, 1, {"model": {"x": [1]}}, {})
    assert os.listdir(tmp_path / "checkpoints") == []


def test_wanted_group_is_missing(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"model": {}}, {})
    with pytest.raises(CheckpointError, match=r"holds no ema\.safetensors \(has model\)"):
        load_checkpoint(path, ["ema"])


def test_every_truncation_is_seen(tmp_path):
    """50 lengths of every file, and the file's absence."""
    good = save_checkpoint(tmp_path, 1, groups(1, size=5), {"x": 1})
    draw = random.Random(0)
    for name in sorted(os.listdir(good)):
        content = (good / name).read_bytes()
        lengths = {draw.randrange(len(content)) for _ in range(200)}
        for length in sorted(lengths)[:25] + sorted(lengths)[-25:]:
            (good / name).write_bytes(content[:length])
            with pytest.raises(CheckpointError, match="none of its 1 checkpoints is whole"):
                newest_complete(tmp_path)
            with pytest.raises(CheckpointError):
                load_checkpoint(good)
        (good / name).write_bytes(content)
    assert newest_complete(tmp_path) == good


def test_a_thousand_bit_flips_are_seen(tmp_path):
    good = save_checkpoint(tmp_path, 1, groups(1, size=5), {"x": 1})
    files = sorted(os.listdir(good))
    contents = {name: (good / name).read_bytes() for name in files}
    draw = random.Random(1)
    for count in range(1000):
        name = files[count % len(files)]
        data = bytearray(contents[name])
        bit = draw.randrange(8 * len(data))
        data[bit // 8] ^= 1 << (bit % 8)
        (good / name).write_bytes(data)
        with pytest.raises(CheckpointError):
            load_checkpoint(good)
        with pytest.raises(CheckpointError, match="none of its 1 checkpoints is whole"):
            newest_complete(tmp_path)
        (good / name).write_bytes(contents[name])
    assert newest_complete(tmp_path) == good


def test_files_of_others_are_refused_by_name(tmp_path):
    """A manifest that is right about files that are no checkpoint."""
    import hashlib

    path = save_checkpoint(tmp_path, 1, {"model": {}}, {})
    for name, content, message in (
        ("model.safetensors", b"\x80\x04cos\nsystem\n.", "model.safetensors"),
        ("state.json", b"[1]", "has no step"),
        ("state.json", b"{", "not JSON"),
    ):
        kept = (path / name).read_bytes(), (path / MANIFEST).read_bytes()
        (path / name).write_bytes(content)
        digest, old = (hashlib.sha256(c).hexdigest().encode() for c in (content, kept[0]))
        (path / MANIFEST).write_bytes(kept[1].replace(old, digest))
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path)
        (path / name).write_bytes(kept[0])
        (path / MANIFEST).write_bytes(kept[1])


def test_an_interrupted_save_at_every_system_call_is_harmless(tmp_path, monkeypatch):
    """Stops a save before each of its file operations, 20 and more of them."""

    class Stop(BaseException):
        pass

    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "rename")}
    for stop_at in range(200):
        calls = 0

        def counted(name, stop_at=stop_at):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls > stop_at:
                    raise Stop
                return real[name](*args, **kwargs)

            return call

        run = tmp_path / str(stop_at)
        save_checkpoint(run, 1, groups(1), {}, keep=1)
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counted(name))
            patch.setattr(shutil, "rmtree", lambda *a, **k: None)  # a kill cleans nothing
            try:
                save_checkpoint(run, 2, groups(2), {}, keep=1)
                done = True
            except Stop:
                done = False
        path = newest_complete(run, on_damage=lambda text: pytest.fail(text))
        assert path is not None
        step = load_checkpoint(path).step
        assert step in ((2,) if done else (1, 2))
        assert_equal(load_checkpoint(path).tensors, groups(step))
        save_checkpoint(run, 3, groups(3), {}, keep=1)
        assert os.listdir(run / "checkpoints") == ["step-000003"]
        if done:
            assert stop_at >= 20
            return
    pytest.fail("the save never finished")


def test_144_megabytes_cost_little_beyond_the_raw_write(tmp_path):
    """The promise is 0.5 s; CPU time is what a busy machine cannot distort."""
    model = {f"p{i}": torch.ones(4_000_000) * i for i in range(9)}
    cpu = time.process_time()
    save_checkpoint(tmp_path, 1, {"model": model}, {})
    cpu = time.process_time() - cpu
    raw = torch.cat(list(model.values())).numpy().tobytes()
    start = time.process_time()
    with open(tmp_path / "raw", "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    assert cpu - (time.process_time() - start) <= 1.5  # encode, hash and read back, no disk


def test_a_link_to_a_disk_that_is_not_there_is_a_damaged_one(tmp_path):
    save_checkpoint(tmp_path, 1, groups(1), {})
    (tmp_path / "checkpoints" / "step-000009").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="step-000009: has no MANIFEST"):
        assert load_newest(tmp_path, ()).step == 1
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="need a folder of checkpoints"):
        load_newest(tmp_path)
