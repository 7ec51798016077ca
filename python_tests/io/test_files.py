"""Atomic writes and JSON files."""

from __future__ import annotations

import json
import math
import os

import pytest

from ddsm_ext.io.files import append_jsonl, read_json, read_jsonl, write_atomic, write_json


def test_write_atomic_replaces_whole_content_and_leaves_no_temp(tmp_path):
    path = tmp_path / "new" / "a.bin"
    write_atomic(path, b"first")
    write_atomic(path, b"second, longer")
    assert path.read_bytes() == b"second, longer"
    assert os.listdir(path.parent) == ["a.bin"]


def test_write_atomic_keeps_old_content_when_the_disk_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_write_atomic_syncs_file_before_rename_and_folder_after(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), real_fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), real_replace(a, b))[1])
    write_atomic(tmp_path / "a", b"x")
    assert calls == ["fsync", "rename", "fsync"]


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None, True], "ü": "é"}
    assert read_json(write_json(tmp_path / "a.json", value)) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="finite"):
        write_json(tmp_path / "a.json", {"x": value})
    assert not (tmp_path / "a.json").exists()


def test_a_key_given_twice_among_many_is_found_at_once(tmp_path):
    keys = ", ".join(f'"k{n}": 0' for n in range(200_000))
    (tmp_path / "a.json").write_text(f'{{{keys}, "k199999": 1}}')
    with pytest.raises(ValueError, match="key 'k199999' is given twice"):
        read_json(tmp_path / "a.json")


def test_values_without_json_form_are_refused(tmp_path):
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        write_json(tmp_path / "a.json", {"x": {1}})


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{]", b"\xff\xfe", b"NaN", b'{"a": Infinity}', b"[" * 100_000]
)
def test_bad_json_names_the_file(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.json: .*need"):
        read_json(path)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file; need a JSON file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ValueError, match="is a folder"):
        read_json(tmp_path)


def test_jsonl_appends_and_reads(tmp_path):
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"step": 1}, {"step": 2})
    append_jsonl(path, {"step": 3})
    assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3]


def test_jsonl_torn_at_every_byte_reads_the_whole_rows_and_appends_cleanly(tmp_path):
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"step": 1}, {"step": 22}, {"s": "é"})
    content = path.read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]
    ends = [index + 1 for index, byte in enumerate(content) if byte == 10]
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        whole = sum(end - 1 <= length for end in ends)  # a row counts even without its newline
        assert read_jsonl(path) == rows[:whole]
        append_jsonl(path, {"next": True})
        assert read_jsonl(path) == [*rows[:whole], {"next": True}]


def test_jsonl_refuses_damage_before_the_last_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(ValueError, match="line 2 is no JSON object"):
        read_jsonl(path)


def test_jsonl_missing_file(tmp_path):
    assert read_jsonl(tmp_path / "none", missing_ok=True) == []
    with pytest.raises(FileNotFoundError):
        read_jsonl(tmp_path / "none")
