"""Commands beside the main path: checks, convert, bench, classifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ddsm_ext.cli.main import main
from ddsm_ext.compat.official_ddsm import official_state_dict_shapes
from ddsm_ext.eval.classifier import load_classifier
from ddsm_ext.sampling.strategy import Strategy


def test_checks_pass_here_and_name_every_op(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checks", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert f"torch               {torch.__version__}" in text
    sliced = ("conv2d", "linear", "group_norm", "layer_norm", "attention")
    for op in ("activation", "packed_attention", *(f"sliced_{op}" for op in sliced)):
        assert text.count(f"{op} ") == 2  # float32 and bfloat16
    assert "all checks passed" in text


def test_an_official_search_becomes_a_strategy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "search.txt"
    source.write_text(str([1.0] * 300 + [0.5] * 700))
    out = tmp_path / "strategy.json"
    assert main(["convert", str(source), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert Strategy.load(out).widths == (0.5, 1.0)  # noisy to clean; t = 0 is the cleanest


def test_code_in_a_search_result_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "search.txt"
    marker = tmp_path / "ran"
    source.write_text(f"[__import__('pathlib').Path({str(marker)!r}).touch()]")
    assert main(["convert", str(source), "--out", str(tmp_path / "s.json")]) == 2
    assert not marker.exists()
    assert not (tmp_path / "s.json").exists()


def test_an_official_checkpoint_becomes_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"T": 10, "ch": 64, "ch_mult": [1, 1], "attn": [1], "num_res_blocks": 1,
             "groups": 16, "image_size": 8}  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=generator) * 0.1
        for name, shape in official_state_dict_shapes(flags).items()
    }
    checkpoint = tmp_path / "ckpt.pt"
    torch.save({"ema_model": state, "net_model": state}, checkpoint)
    flag_file = tmp_path / "flagfile.txt"
    flag_file.write_text(
        "--T=10\n--ch=64\n--ch_mult=1\n--ch_mult=1\n--attn=1\n--num_res_blocks=1\n--img_size=8\n--slimmable_g16\n"
    )
    root = str(tmp_path / "runs")
    arguments = ["convert", str(checkpoint), "--flags", str(flag_file), "--root", root]
    code = main(arguments)
    assert code == 0, capsys.readouterr().err
    run = Path(capsys.readouterr().out.strip())
    assert json.loads((run / "config.json").read_text())["model"]["concat_slicing"] == "prefix"
    assert main(["sample", "--run", str(run), "--seeds", "0-1", "--strategy", "1"]) == 0


def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> object:
            return (Path.touch, (marker,))

    torch.save({"ema_model": Evil()}, tmp_path / "evil.pt")
    assert main(["convert", str(tmp_path / "evil.pt"), "--root", str(tmp_path / "runs")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--ops", "conv"], "did you mean conv2d?"),
        (["--dtype", "float16"], "need float32 or bfloat16 or tf32"),
        (["--dtype", "tf32"], "dtype is 'tf32' on the CPU"),
        (["--device", "gpu"], "device is 'gpu'; need cpu or cuda"),
        (["--widths", "half"], "need numbers"),
        (["--batch", "0"], "batch is 0"),
        (["--threads", "0"], "threads is 0"),
        (["--explain", "--batch", "0"], "batch is 0"),
        (["--explain", "--dtype", "tf32"], "dtype is 'tf32'; need one of 'float32', 'bfloat16'"),
    ],
)
def test_bench_refuses(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_the_digits_classifier_is_rebuilt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "digits.safetensors"
    assert main(["classifier", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out)
    accuracy = float(said.err.split("%")[0].split()[-1])
    assert accuracy >= 97.0  # a nearest-neighbour rule reaches 98 % on these digits


def test_a_classifier_of_one_epoch_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "quick.safetensors"
    assert main(["classifier", "--out", str(out), "--epochs", "1"]) == 0
    assert load_classifier(out)[0].config.epochs == 1
    assert main(["classifier", "--out", str(out), "--epochs", "0"]) == 2
    assert "epochs is 0; need an int >= 1" in capsys.readouterr().err


def test_unlabelled_images_train_no_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddsm_ext.data.images import save_png

    images = tmp_path / "images"
    images.mkdir()
    save_png(images / "a.png", torch.zeros(8, 8, 1, dtype=torch.uint8).numpy())
    out = tmp_path / "c.safetensors"
    assert main(["classifier", "--data", str(images), "--out", str(out)]) == 2
    assert "have no labels" in capsys.readouterr().err
    assert not out.exists()
