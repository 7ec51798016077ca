"""The program of single instructions: on the emulator here; nvcc compiles it for sm_90a."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_kernels import emulated

SOURCES = sorted((Path(__file__).parent / "atoms").glob("*.cpp"))
# What the review asks of a GPU, and the base offsets that the emulator does not know.
ASKED = ("H1", "H2", "H3", "H4", "H5", "H6")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atoms")
    emulator = sorted((emulated.CUDA / "emulator").glob("*.cpp"))
    objects = emulated.compile_objects(folder, [*SOURCES, *emulator], "-Wall", "-Wextra")
    subprocess.run(["g++", *objects, "-o", folder / "atoms"], check=True)
    return folder / "atoms"


@pytest.fixture(scope="module")
def expected(program: Path) -> Path:
    path = program.with_name("atoms.expected")
    subprocess.run([program, "--dump", path], check=True)
    return path


def listed(program: Path) -> dict[str, list[str]]:
    done = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    return {name: rest for name, *rest in (row.split("\t") for row in done.stdout.splitlines())}


def run(program: Path, name: str, expected: Path) -> tuple[int, dict[str, object]]:
    done = subprocess.run([program, name, expected], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_every_question_of_the_review_is_asked(program: Path) -> None:
    about = [rest[2] for rest in listed(program).values()]
    for question in ASKED:
        assert any(text.startswith(f"{question}:") for text in about), question
    assert {rest[0] for rest in listed(program).values()} == {"sm_80", "sm_90a"}


def test_the_emulator_gives_the_right_bytes(program: Path, expected: Path) -> None:
    """Products beside plain loops; of rows that begin within the pattern only offset 0 is known."""
    for name, (path, kind, _about) in listed(program).items():
        code, row = run(program, name, expected)
        if name.endswith("-offset") and name != "shifted-0-0-offset":
            assert (code, row["status"]) == (2, "not run"), name
            assert "base offset" in str(row["reason"])
        else:
            assert (code, row["status"], row["different"]) == (0, "right", 0), name
        assert row["atom"] == name
        assert row["path"] == path
        assert row["question"] == (kind == "question")
    assert run(program, "wgmma-128", expected)[1]["bytes"] == 64 * 128 * 4


def test_wrong_bytes_are_counted(program: Path, expected: Path, tmp_path: Path) -> None:
    content = bytearray(expected.read_bytes())
    begin = content.index(b"ldmatrix\n512\n") + len(b"ldmatrix\n512\n")
    content[begin + 7] ^= 1
    content[begin + 300] ^= 255
    wrong = tmp_path / "wrong"
    wrong.write_bytes(content)
    code, row = run(program, "ldmatrix", wrong)
    assert (code, row["status"], row["different"], row["first"]) == (1, "wrong", 2, 7)
    assert run(program, "mma-bf16", wrong)[0] == 0
    code, row = run(program, "mma-bf16", tmp_path / "missing")
    assert (code, row["reason"]) == (2, "nothing to compare with")
    done = subprocess.run([program, "mma", wrong], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "atoms: mma is unknown; need one of --list\n")


def test_a_changed_kernel_is_found(expected: Path, tmp_path: Path) -> None:
    """A part of K that advances too far, as a wrong descriptor would."""
    folder = tmp_path / "csrc" / "cuda"
    shutil.copytree(emulated.CUDA, folder)
    atoms = tmp_path / "python_tests" / "cuda_kernels" / "atoms"
    shutil.copytree(SOURCES[0].parent, atoms)
    products = atoms / "products.cpp"
    text = products.read_text()
    assert text.count("{0, 16, 1024, 0, 32}") == 1
    products.write_text(text.replace("{0, 16, 1024, 0, 32}", "{0, 16, 1024, 0, 64}"))
    sources = [*sorted(atoms.glob("*.cpp")), *sorted((folder / "emulator").glob("*.cpp"))]
    objects = emulated.compile_objects(tmp_path, sources)
    subprocess.run(["g++", *objects, "-o", tmp_path / "atoms"], check=True)
    code, row = run(tmp_path / "atoms", "wgmma-64", expected)
    assert code != 0
    assert row["status"] != "right"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nvcc_compiles_it_without_spills(source: Path, tmp_path: Path) -> None:
    include = f"-I{emulated.ROOT / 'csrc' / 'include'}"
    target = "-gencode=arch=compute_90a,code=sm_90a"
    flags = ("-std=c++17", "-O3", "-Xptxas=-v", include, target, "-x", "cu")
    done = subprocess.run(
        ["nvcc", *flags, "-c", source, "-o", tmp_path / "atoms.o"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "C75" not in done.stderr, "setmaxnreg is ignored or wgmma serialised"
    assert done.stderr.count("bytes spill stores") == done.stderr.count(
        "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    )
