"""Numbered run folders."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddsm_ext.io.files import read_json
from ddsm_ext.run.folder import (
    change_config,
    create_run,
    find_resumable,
    list_runs,
    resolve_run,
    root_of,
    run_config,
    run_name,
)


def test_runs_are_numbered_and_hold_config_and_environment(tmp_path):
    first = create_run(tmp_path / "runs", "digits", {"a": 1})
    second = create_run(tmp_path / "runs", "other", {"a": 2})
    assert [first.name, second.name] == ["00000-digits", "00001-other"]
    assert run_config(first) == {"a": 1}
    assert read_json(first / "env.json")["versions"]["torch"]
    assert list_runs(tmp_path / "runs") == [first, second]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [first.name, second.name]


def test_what_the_user_keeps_beside_the_runs_stays(tmp_path):
    for name in (".new-ideas", ".new-", "new-1"):
        (tmp_path / name).mkdir()
    (tmp_path / ".new-123-run").mkdir()  # of a process that was killed
    create_run(tmp_path, "x", {})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".new-ideas", ".new-", "new-1", "00000-x"}


def test_numbers_go_on_after_the_highest(tmp_path):
    (tmp_path / "00041-x").mkdir()
    (tmp_path / "notes").mkdir()
    assert create_run(tmp_path, "y", {}).name == "00042-y"


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", ".hidden", "é"])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="create_run: name is"):
        create_run(tmp_path / "runs", name, {})
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("photos", "photos"),
        ("a/photos.zip", "photos"),
        ("my photos", "my-photos"),
        ("Bilder für alle (2)", "Bilder-f-r-alle-2"),
        ("写真", "run"),
        (".hidden", "hidden"),
        ("..", "run"),
        ("-n", "n"),
        ("a\nb\x1b[31m", "a-b-31m"),
        ("caf\udce9", "caf"),
        ("x" * 300, "x" * 60),
    ],
)
def test_names_from_the_data_are_names_of_runs(source: str, name: str) -> None:
    assert run_name(source) == name


def test_a_file_system_without_locks_takes_runs(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert [create_run(tmp_path, "x", {}).name for _ in range(2)] == ["00000-x", "00001-x"]


def test_config_without_json_form_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        create_run(tmp_path, "x", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_find_resumable_compares_whole_configs(tmp_path):
    config = {"train": {"steps": 10, "widths": (1.0, 0.5)}}
    create_run(tmp_path, "a", config)
    newest = create_run(tmp_path, "a", config)
    create_run(tmp_path, "a", {"train": {"steps": 20, "widths": [1.0, 0.5]}})
    assert find_resumable(tmp_path, config) == newest
    assert find_resumable(tmp_path, config, name="b") is None
    longer = {"train": {"steps": 30, "widths": [1.0, 0.5]}}
    assert find_resumable(tmp_path, longer) is None
    assert find_resumable(tmp_path / "none", config) is None


def test_find_resumable_passes_over_damaged_configs_with_a_word(tmp_path):
    run = create_run(tmp_path, "a", {"x": 1})
    (create_run(tmp_path, "a", {"x": 1}) / "config.json").write_text("{")
    with pytest.warns(UserWarning, match=r"00001-a.config\.json: is not JSON .* passed over"):
        assert find_resumable(tmp_path, {"x": 1}) == run
    (tmp_path / "00001-a" / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"00001-a.config\.json: no such file.* passed over"):
        assert find_resumable(tmp_path, {"x": 1}) == run


def test_every_digit_of_a_config_that_changes_is_seen(tmp_path):
    run = create_run(tmp_path, "a", {"diffusion": {"timesteps": 1000}, "train": {"lr": 2e-4}})
    path, config = run / "config.json", run_config(run)
    text = path.read_text()
    for place in (i for i, letter in enumerate(text) if letter.isdigit()):
        path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        with pytest.raises(ValueError, match=r"config\.json: "):
            run_config(run)
        with pytest.warns(UserWarning, match="passed over"):
            assert find_resumable(tmp_path, config) is None
    path.write_text(text)
    assert run_config(run) == config
    change_config(run, train={"lr": 1.0})
    assert run_config(run) == {**config, "train": {"lr": 1.0}}
    # made by an earlier version, or by hand
    path.write_text('{"diffusion": {"timesteps": 100}}')
    assert run_config(run) == {"diffusion": {"timesteps": 100}}


def test_a_config_that_cannot_be_read_is_no_other_run(tmp_path, monkeypatch):
    run = create_run(tmp_path, "a", {"x": 1})

    def unreadable(path, *args, **more):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("builtins.open", unreadable)
    with pytest.raises(PermissionError, match=str(run / "config.json")):
        find_resumable(tmp_path, {"x": 1})


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_a_run_folder_has_the_rights_of_any_new_folder(tmp_path, umask):
    before = os.umask(umask)
    try:
        run = create_run(tmp_path, "a", {})
        (tmp_path / "other").mkdir()
    finally:
        os.umask(before)
    assert run.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_resolve_run(tmp_path):
    first, second = create_run(tmp_path, "a", {}), create_run(tmp_path, "b", {})
    assert resolve_run(tmp_path) == second
    for selector in (0, "0", "00000", "a", "00000-a", first):
        assert resolve_run(tmp_path, selector) == first
    with pytest.raises(FileNotFoundError, match="00000-a, 00001-b"):
        resolve_run(tmp_path, "c")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        resolve_run(tmp_path / "none")


def test_the_root_of_a_run_behind_dots_and_links(tmp_path, monkeypatch):
    run = create_run(tmp_path / "runs", "x", {})
    assert root_of(run) == tmp_path / "runs"
    (tmp_path / "best").symlink_to(run)
    assert root_of(tmp_path / "best") == tmp_path / "runs"
    # a link of the run's own name stands for the run where it is
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / run.name).symlink_to(run)
    assert root_of(tmp_path / "more" / run.name) == tmp_path / "more"
    monkeypatch.chdir(tmp_path)
    assert str(root_of(Path("runs") / run.name)) == "runs"
    monkeypatch.chdir(run)
    assert root_of(Path()) == tmp_path / "runs"


def test_processes_never_share_a_number(tmp_path):
    code = (
        "import sys; from ddsm_ext.run.folder import create_run\n"
        "for i in range(10): create_run(sys.argv[1], sys.argv[2], {})"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    numbers = sorted(int(run.name[:5]) for run in list_runs(tmp_path))
    assert numbers == list(range(30))
