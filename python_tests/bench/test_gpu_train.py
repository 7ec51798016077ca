"""The plan of a training run of minutes: budget, refusals, what it leaves, going on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.scripts import ROOT  # makes gpu_train importable
from gpu_train import checks
from gpu_train.__main__ import Plan, main, parsed
from gpu_train.checks import Refusal
from gpu_train.presets import CIFAR10, PRESETS, TINY, Preset
from gpu_train.results import INDEX, SHARD_BYTES, Results, images_seen, paired
from gpu_train.shards import save_shards
from gpu_train.steps import Budget, Outcome, run_step

import ddsm_ext
from ddsm_ext.cli.main import main as ddsm
from ddsm_ext.data.images import save_png
from ddsm_ext.eval.classifier import ClassifierConfig, save_classifier, train_classifier
from ddsm_ext.graph.count import parameter_count
from ddsm_ext.io.checkpoint import load_checkpoint, newest_complete, save_checkpoint
from ddsm_ext.io.files import append_jsonl, read_json, read_jsonl, write_json
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.run.config import RunConfig, merge, preset_values
from ddsm_ext.run.folder import create_run

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
NAME = re.compile(r"[A-Za-z0-9._-]+")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of two classes and features of a classifier of such images."""
    folder = tmp_path_factory.mktemp("given")
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        save_png(folder / "data" / f"class{number % 2}" / f"{number:03d}.png", image)
    for size in (32, 8):
        config = ClassifierConfig(size, 3, 2, channels=4, features=4, epochs=1)
        x = images[:, :size, :size].transpose(0, 3, 1, 2).copy()
        trained = train_classifier(x, np.arange(40) % 2, data_name="noise", config=config)
        save_classifier(trained, folder / f"features-{size}.safetensors")
    return folder


def words(given: Path, tmp_path: Path, *more: str) -> list[str]:
    paths = ["--data", str(given / "data"), "--features", str(given / "features-32.safetensors")]
    return [str(tmp_path / "out"), "--work", str(tmp_path / "work"), *paths, "--preset", "tiny",
            "--device", "cpu", *more]  # fmt: skip


def test_every_step_has_its_share_of_the_minutes() -> None:
    """7 min less 5 s are 415: 22 % for scores, 15 % for the search, 12 s for the checkpoint."""
    budget = Budget(1000.0, 7.0)
    assert budget.until("scores") == pytest.approx(1415.0)
    assert budget.until("search") == pytest.approx(1000 + 0.78 * 415)
    assert budget.until("train") == pytest.approx(1000 + 0.63 * 415 - 12)
    assert Budget(0.0, 1.0).until("train") == pytest.approx(0.63 * 55 - 0.05 * 55)


def test_steps_end_in_every_way(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"

    def step(code: str, seconds: float) -> Outcome:
        return run_step("x", ["-c", code], time.monotonic() + seconds, log=log)

    assert step("print('fine')", 60).status == "ok"
    failed = step("import sys; print('first'); sys.exit('why')", 60)
    assert (failed.status, failed.reason) == ("failed", "exit code 1: why")
    skipped = step("", 1)
    assert (skipped.status, skipped.seconds) == ("skipped", 0.0)
    saves = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n"
        f"    pathlib.Path({str(tmp_path / 'saved')!r}).touch(); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "time.sleep(600)"
    )
    start = time.monotonic()
    stopped = step(saves, 4)
    assert stopped.status == "stopped"
    assert time.monotonic() - start < 60
    assert (tmp_path / "saved").exists()
    assert "fine" in log.read_text()


def test_a_killed_plan_leaves_no_command_behind(tmp_path: Path) -> None:
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    parent = (
        "import sys, time; from pathlib import Path; from gpu_train.steps import run_step\n"
        f"run_step('x', ['-c', {child!r}], time.monotonic() + 600, log=Path({str(tmp_path)!r}) "
        "/ 'log')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    process = subprocess.Popen(
        [sys.executable, "-c", parent], env=environment, stdout=subprocess.DEVNULL
    )
    log = tmp_path / "log"
    found = None
    while found is None:
        time.sleep(0.1)
        found = re.search(r"^(\d+)$", log.read_text() if log.exists() else "", re.MULTILINE)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(300):
        try:
            os.kill(int(found[1]), 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{found[1]}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":  # ended; nobody has asked how
            return
        time.sleep(0.1)
    pytest.fail("the command outlived its parent")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--minutes", "0.1"], "--minutes is 0.1; need 0.5 to 1440"),
        (["--minutes", "nan"], "--minutes is nan; need 0.5 to 1440"),
        (["--minutes", "many"], "argument --minutes: invalid float value: 'many'; see --help"),
        (["--minute", "7"], "unrecognized arguments: --minute 7"),
        (["--preset", "cifar"], "--preset is 'cifar'; need one of cifar10, tiny"),
        (["--data", "/nowhere.tar"], "--data /nowhere.tar: no such file or folder"),
        (["--features", "/nowhere"], "--features /nowhere: no such file; need one of `ddsm class"),
        (["--site", "/"], "--site /: holds no ddsm_ext"),
        (["--work", __file__], "is a file; need a folder"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    given: Path, tmp_path: Path, more: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(given, tmp_path, *more)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("gpu_train: ")
    assert expected in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_says_what_comes_out_and_what_a_second_call_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for part in (INDEX, "results.json", "strategy.json", "samples.png", "resumes exactly"):
        assert part in text


@pytest.mark.parametrize("what", ["torch", "package"])
@pytest.mark.parametrize("package", ["pymoo", "PIL", "tabulate"])
def test_a_missing_package_is_named_before_anything_is_built_or_trained(
    tmp_path: Path, package: str, what: str, given: Path
) -> None:
    (tmp_path / f"{package}.py").write_text(
        f"raise ModuleNotFoundError('No module named {package}', name='{package}')"
    )
    with pytest.raises(Refusal, match=f"the Python package {package} is missing; need it on PYTH"):
        checks.probe(what, given / "features-32.safetensors", {"PYTHONPATH": str(tmp_path)})


@NO_GPU
def test_devices_and_features_are_checked(given: Path) -> None:
    about = checks.probe("package", given / "features-8.safetensors", {})
    assert checks.check_device("auto", TINY, about) == "cpu"
    with pytest.raises(Refusal, match="finds no GPU; need one for --preset cifar10"):
        checks.check_device("auto", CIFAR10, about)
    with pytest.raises(Refusal, match="finds no GPU; need one for --device cuda"):
        checks.check_device("cuda", TINY, about)
    with pytest.raises(Refusal, match="of 3x8x8 images; need one of 3x32x32"):
        checks.check_package("cpu", about, TINY)
    with pytest.raises(Refusal, match="not a safetensors file"):
        checks.probe("package", Path(__file__), {})


@NO_GPU
def test_a_build_that_fails_is_one_sentence(given: Path, tmp_path: Path) -> None:
    plan = Plan(parsed(words(given, tmp_path)), TINY, Budget(time.monotonic(), 60.0))
    plan.work.mkdir()
    with pytest.raises(Refusal, match=r"building ddsm_ext failed \(exit code 1: .*log.txt$"):
        plan.build(tmp_path / "build")


def test_a_built_package_is_taken_from_its_folder(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    site = tmp_path / "site"
    site.mkdir()
    (site / "ddsm_ext").symlink_to(Path(ddsm_ext.__file__).parent)
    arguments = parsed(words(given, tmp_path, "--site", str(site)))
    plan = Plan(arguments, TINY, Budget(time.monotonic(), 60.0))
    plan.prepare()
    assert plan.about["ddsm_ext"] == ddsm_ext.__version__
    code = "import ddsm_ext; print(ddsm_ext.__file__)"
    environment = {**os.environ, **plan.environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.decode().startswith(str(site))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_presets_are_settings_of_ddsm_and_fit_in_eight_files(preset: Preset) -> None:
    settings = preset.resolved(Path("data.tar"), Path("f.safetensors"), Path("work"), 0.57)
    config = RunConfig.from_dict(merge(preset_values("cifar10"), settings))
    assert preset.equal_width in config.train.widths
    assert config.eval.features == "classifier:f.safetensors"
    assert config.search.budget_macs == 0.57
    shards = 2 * parameter_count(config.model) / SHARD_BYTES
    assert shards + 1 + 4 <= 8  # one more than filled ones; index, results, strategy, sheet
    assert preset.settings["data"].keys() == {"split", "image_size", "channels"}


def run_folder(root: Path, given: Path) -> tuple[Path, SlimmableNetwork]:
    """A run of the preset "tiny" after 40 steps, searched and scored."""
    settings = TINY.resolved(given / "data", Path("f"), root, 0.57)
    config = RunConfig.from_dict(merge(preset_values("cifar10"), settings))
    run = create_run(root, "gpu-train", config.to_dict())
    network = SlimmableNetwork(config.model, generator=torch.Generator().manual_seed(1))
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_checkpoint(run, 40, {"ema": weights, "model": weights}, {})
    rates = [{"step": step, "images_per_s": 10.0 * step} for step in (10, 20, 30, 40)]
    append_jsonl(run / "log.jsonl", *rates)
    write_json(run / "search" / "strategy.json", {"any": "thing"})
    strip = np.zeros((34, 100, 3), dtype=np.uint8)
    rows = [{"label": label, "file": f"{label}.png"} for label in ("real", "full")]
    for row in rows:
        save_png(run / "samples" / "compare" / row["file"], strip)
    write_json(run / "samples" / "compare" / "index.json", {"seeds": "0-15", "rows": rows})
    return run, network


def test_out_dir_holds_a_few_whole_files_and_the_weights_come_back(
    tmp_path: Path, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, network = run_folder(tmp_path / "runs", given)
    out = tmp_path / "out"
    out.mkdir()
    results = Results(out, {"gpu": "A GPU"}, images_before=1000)
    results.publish_weights(run)
    results.outcomes.append(Outcome("train", "stopped", "its time was up", 60.0, 58.0))
    results.write(run)
    files = sorted(out.iterdir())
    assert len(files) <= 8
    assert all(NAME.fullmatch(path.name) and path.stat().st_size < 15e6 for path in files)
    assert {"results.json", "samples.png", "strategy.json", INDEX} < {path.name for path in files}
    content = read_json(out / "results.json")
    assert content["gpu"] == "A GPU"
    assert content["steps"][0]["status"] == "stopped"
    assert content["training"]["images_seen"] == images_seen(out) == 1000 + 40 * 16
    assert content["training"]["images_per_s"] == 300.0  # the first row holds the start
    assert content["scores"] is None

    capsys.readouterr()
    root = str(tmp_path / "joined")
    assert ddsm(["convert", str(out / INDEX), "--root", root, "--set", "data.source=x"]) == 0
    joined = Path(capsys.readouterr().out.strip())
    checkpoint = load_checkpoint(newest_complete(joined))
    assert checkpoint.step == 40
    for name, tensor in network.state_dict().items():
        assert torch.equal(checkpoint.tensors["ema"][name], tensor.bfloat16().float()), name
    assert read_json(joined / "config.json")["model"] == read_json(run / "config.json")["model"]


def test_an_index_without_settings_makes_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "a.safetensors.index.json"
    save_shards(index, {"a": torch.ones(2)}, max_bytes=10**6)
    assert ddsm(["convert", str(index), "--root", str(tmp_path / "runs")]) == 2
    assert "hold no config" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def settled(given: Path, tmp_path: Path, preset: Preset = TINY) -> Plan:
    plan = Plan(parsed(words(given, tmp_path)), preset, Budget(time.monotonic(), 7.0))
    for folder in (plan.out, plan.work):
        folder.mkdir(parents=True, exist_ok=True)
    plan.settle()
    return plan


def test_a_second_call_keeps_the_settings_of_the_first(given: Path, tmp_path: Path) -> None:
    plan = settled(given, tmp_path)
    first = read_json(plan.work / "config.json")
    assert (first["train"]["seed"], first["train"]["start_from"]) == (0, None)
    # 3/4 of the channels: 0.5625 and a little, as first and last layer have one side fixed
    assert 0.5625 < first["search"]["budget_macs"] < 0.6
    # Weights of its own first call make no new beginning.
    run, _ = run_folder(plan.root, given)
    Results(plan.out, {}, 0).publish_weights(run)
    again = settled(given, tmp_path)
    assert read_json(again.work / "config.json") == first
    assert again.images_before == 0
    with pytest.raises(Refusal, match="holds a run of other settings; need another folder"):
        settled(given, tmp_path, CIFAR10)


def test_weights_brought_back_begin_a_new_run(given: Path, tmp_path: Path) -> None:
    run, network = run_folder(tmp_path / "elsewhere", given)
    out = tmp_path / "out"
    out.mkdir()
    Results(out, {}, 360).publish_weights(run)
    for _ in range(2):  # a third call continues what the second began
        plan = settled(given, tmp_path)
        assert plan.images_before == 1000
        train = read_json(plan.work / "config.json")["train"]
        assert train["seed"] == 1000
        tensors = load_checkpoint(newest_complete(train["start_from"])).tensors["ema"]
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensors[name], tensor.bfloat16().float()), name


def test_samplers_are_paired_with_the_full_width() -> None:
    def row(label: str, seeds: str, frechet: float, macs: int) -> dict[str, Any]:
        values = {"label": label, "seeds": seeds, "frechet": frechet, "images": 100}
        return values | {"macs_per_image": macs, "ms_per_image": macs / 10}

    rows = [
        row("full width", "0-99", 10.0, 200), row("full width", "100-199", 12.0, 200),
        row("strategy", "0-99", 10.5, 110), row("strategy", "100-199", 13.5, 110),
        row("width 0.75", "0-99", 15.0, 114),
    ]  # fmt: skip
    full, strategy, constant = paired(rows)
    assert full["frechet_minus_full"] == {"mean": 0.0, "std": 0.0}
    assert strategy["frechet"]["mean"] == 12.0
    assert strategy["frechet_minus_full"]["mean"] == 1.0
    assert strategy["frechet_minus_full"]["std"] == pytest.approx(0.5**0.5)  # of 0.5 and 1.5
    assert strategy["macs_of_full"] == 0.55
    assert constant["frechet_minus_full"] == {"mean": 5.0, "std": None}
    assert constant["seeds"] == ["0-99"]
    assert paired([]) == []


# The preset "tiny" with so little of everything that no step ends for want of time.
DRIVER = """
import copy, sys
from dataclasses import replace
from gpu_train.__main__ import main
from gpu_train.presets import TINY
settings = copy.deepcopy(TINY.settings)
settings["train"] |= {"steps": 20, "batch_size": 4, "checkpoint_every": 4, "log_every": 1}
settings["sampler"]["steps"] = 2
settings["search"] |= {"pool": 4, "generations": 1, "samples": 4, "most_samples": 4}
settings["search"] |= {"finalists": 1, "final_samples": 4}
settings["eval"] |= {"images": 8, "sensitivity_images": 2, "batch_size": 8}
sys.exit(main(sys.argv[1:], [replace(TINY, settings=settings)]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_its_files_alone_do_too(given: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    out, work = tmp_path / "out", tmp_path / "work"

    def start(*more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", DRIVER, *words(given, tmp_path, "--minutes", "60", *more)]
        return subprocess.Popen(command, env=environment)

    first = start()
    while not (out / INDEX).exists():
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    log = work / "runs" / "00000-gpu-train" / "log.jsonl"
    kept = images_seen(out) // 4
    losses = [row["loss"] for row in read_jsonl(log)[:kept]]
    assert start().wait() == 0
    rows = read_jsonl(log)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["loss"] for row in rows[:kept]] == losses
    content = read_json(out / "results.json")
    assert {step["status"] for step in content["steps"]} == {"ok"}
    assert content["training"]["images_seen"] == 80
    assert content["front"]["points"]
    assert content["strategy"] == read_json(out / "strategy.json")
    labels = [row["label"] for row in content["paired"]]
    assert labels == ["full width", "strategy", "width 0.75"]
    assert all(len(row["seeds"]) == TINY.ranges for row in content["paired"])
    assert len(list(out.iterdir())) <= 8

    assert start("--work", str(tmp_path / "elsewhere")).wait() == 0
    training = read_json(out / "results.json")["training"]
    assert (training["images_seen_before"], training["images_seen"]) == (80, 160)
    assert images_seen(out) == 160
