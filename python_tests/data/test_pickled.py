"""Pickles read as data: the plain ones right, everything else refused, nothing executed."""

from __future__ import annotations

import collections
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest

from ddsm_ext.data.pickled import PickledArray, PickleRefused, read_plain_pickle

PLAIN = {
    "labels": [0, 1, 255, 256, 70_000, 2**40, -3],
    b"key": b"bytes",
    "float": 1.5,
    "none": None,
    "nested": {"t": (1, (True, False), ()), "empty": [[], {}]},
    7: "é" * 300,
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values(protocol):
    assert read_plain_pickle(pickle.dumps(PLAIN, protocol), "x") == PLAIN


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["u1", "b1", "i8", ">i4", "f4", "f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays(protocol, dtype, order):
    array = np.asarray(np.arange(12).reshape(3, 4).astype(dtype), order=order)
    value = read_plain_pickle(pickle.dumps({"a": array, "b": [array]}, protocol), "x")
    assert isinstance(value["a"], PickledArray)
    assert value["a"].array.dtype == array.dtype
    assert np.array_equal(value["a"].array, array)
    assert value["b"][0].array is not None


def test_python_2_strings_are_bytes():
    assert read_plain_pickle(b"}q\x00(U\x04dataq\x01T\x03\x00\x00\x00\xff\x00\x80u.", "x") == {
        b"data": b"\xff\x00\x80"
    }


def test_numpy_1_names(monkeypatch):
    data = pickle.dumps(np.arange(3, dtype=np.uint8), 2)
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert read_plain_pickle(old, "x").array.tolist() == [0, 1, 2]


class Reduces:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


TOUCH = "touch executed"
EVIL = {
    "os.system": pickle.dumps(Reduces(os.system, TOUCH)),
    "os.system protocol 0": pickle.dumps(Reduces(os.system, TOUCH), 0),
    "eval": pickle.dumps({"data": Reduces(eval, "open('executed', 'w')")}),
    "exec": pickle.dumps([Reduces(exec, "open('executed', 'w')")], 2),
    "subprocess": pickle.dumps(Reduces(subprocess.Popen, ["touch", "executed"])),
    "getattr": pickle.dumps(Reduces(getattr, 1, "real")),
    "import": pickle.dumps(Reduces(__import__, "antigravity")),
    "inst": b"(S'touch executed'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch executed'\no.",
    "newobj": b"\x80\x02cos\nsystem\nU\x0etouch executed\x85\x81.",
    "newobj_ex": pickle.dumps(collections.Counter()).replace(b"R.", b"\x92."),
    "build": b"\x80\x02cnumpy\ndtype\n}U\x01aK\x01sb.",
    "numpy load": b"\x80\x02cnumpy\nload\nU\x08executed\x85R.",
    "numpy dtype object": b"\x80\x02cnumpy\ndtype\nU\x02O8\x85R.",
    "object array": pickle.dumps(np.array([Reduces(os.system, TOUCH)], dtype=object)),
    "structured dtype": pickle.dumps(np.zeros(1, dtype=[("a", "u1")])),
    "codecs decode": b"\x80\x02c_codecs\ndecode\nU\x01aU\x05rot13\x86R.",
    "codecs encode": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"Pexecuted\n.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch executed\x85R.",
    "split name": b"\x80\x04\x8c\x0bnumpy dtype\x8c\x00\x93.",
    "array of wrong size": pickle.dumps(np.zeros(100, np.uint8)).replace(b"Kd\x85", b"K\xff\x85"),
    "tuple keys": b"\x80\x02}" + b")" + b"2\x86" * 60 + b"K\x01s.",
    "hash bomb": b"\x80\x02}(K\x01\x85" + b"q\x00h\x00\x86" * 60 + b"K\x01u.",
    "set": pickle.dumps({1, 2}),
    "bytearray": pickle.dumps(bytearray(b"x"), 2),
    "range": pickle.dumps(range(3)),
    "class": pickle.dumps(collections.OrderedDict),
    "empty": b"",
    "no stop": b"\x80\x02K\x01",
    "no mark": b"\x80\x02e.",
    "only stop": b".",
    "mark as value": b"(.",
    "unknown opcode": b"\xff.",
    "long of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "bytes of 1 EiB": b"\x80\x04\x8e\x00\x00\x00\x00\x00\x00\x00\x10x.",
    "huge put": b"\x80\x02K\x01r\xff\xff\xff\xff.",
    "missing memo": b"\x80\x02h\x07.",
}


@pytest.mark.parametrize("name", EVIL)
def test_evil_pickles_are_refused_and_nothing_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name == "huge put":  # harmless: a number in a memo
        assert read_plain_pickle(EVIL[name], "evil") == 1
        return
    with pytest.raises(PickleRefused, match=r"evil: the pickle .*need") as error:
        read_plain_pickle(EVIL[name], "evil")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_the_corpus_is_really_evil(tmp_path):
    """The same files do run code in the pickle module."""
    for name in ("os.system", "inst", "obj", "stack global", "eval"):
        folder = tmp_path / name.replace(" ", "")
        folder.mkdir()
        code = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, EVIL[name].hex()], cwd=folder, check=True)
        assert os.listdir(folder) == ["executed"]


def test_reading_imports_and_calls_nothing():
    """An audit hook sees every import, process and file that reading would cause."""
    code = """
import sys
from ddsm_ext.data.pickled import read_plain_pickle
seen = []
sys.addaudithook(lambda event, args: seen.append((event, args)))
for line in sys.stdin:
    try:
        read_plain_pickle(bytes.fromhex(line), "x")
    except ValueError:
        pass
names = {event for event, _ in seen}
bad = [n for n in names if n.split(".")[0] in
       ("import", "os", "subprocess", "open", "exec", "compile", "pickle", "socket", "shutil")]
print(bad)
"""
    text = "\n".join(data.hex() for data in EVIL.values())
    result = subprocess.run(
        [sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_random_damage_gives_plain_values_or_one_sentence():
    draw = random.Random(0)
    contents = [pickle.dumps({"data": np.zeros((2, 3), np.uint8), **PLAIN}, p) for p in range(6)]
    refusals = []
    for count in range(3000):
        data = bytearray(contents[count % 6])
        for _ in range(draw.randint(1, 5)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            read_plain_pickle(bytes(data), "x")
        except PickleRefused as error:
            refusals.append(str(error))
    assert len(refusals) > 1000
    assert all(text.startswith("x: the pickle ") for text in refusals)
