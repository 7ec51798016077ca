"""Damaged files of a run: a sentence where they would have been shown, and the rest stands."""

from __future__ import annotations

import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report.make_run import make_run
from report.test_page import Page

from ddsm_ext.cli.main import main
from ddsm_ext.report import build_report, figures
from ddsm_ext.report.records import Costs, Environment, LogRow, Metrics, Pictures, Steps
from ddsm_ext.search.front import Front
from ddsm_ext.search.history import History
from ddsm_ext.search.sensitivity import Sensitivity

EVIL = "<img src=x onerror=alert(1)>"
LONG = "y" * 2_000_000
# file -> the sections that show it; "top" is what stands above all of them
SHOWN = {
    "config.json": ("top", "training", "configuration"),
    "env.json": ("measured",),
    "log.jsonl": ("training",),
    "commands.jsonl": ("configuration",),
    "metrics.json": ("top", "quality", "costs", "measured"),
    "search/archive.jsonl": ("pareto",),
    "search/front.json": ("top", "pareto", "costs"),
    "search/history.json": ("pareto",),
    "search/sensitivity.json": ("sensitivity",),
    "search/steps.json": ("strategy", "sensitivity"),
    "search/costs.json": ("costs",),
    "samples/compare/index.json": ("samples",),
}
DOCUMENTS: dict[str, Any] = {
    "env.json": Environment,
    "metrics.json": Metrics,
    "search/front.json": Front,
    "search/history.json": History,
    "search/sensitivity.json": Sensitivity,
    "search/steps.json": Steps,
    "search/costs.json": Costs,
    "samples/compare/index.json": Pictures,
}


def sections(html: str) -> dict[str, str]:
    """The page by section."""
    top, *rest = re.split(r'<section id="', html)
    return {"top": top[top.index("<h1>") :], **{part.partition('"')[0]: part for part in rest}}


def built(run: Path) -> tuple[dict[str, str], list[str]]:
    """The page by section, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        html = build_report(run).read_text(encoding="utf-8")
    Page(html)
    return sections(html), [str(warning.message) for warning in caught]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / whole.name)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not drawn, which takes most of a report's time."""
    monkeypatch.setattr(figures, "to_svg_uri", lambda figure: "data:image/svg+xml;base64,")


_whole_page: dict[Path, dict[str, str]] = {}


@pytest.fixture
def before(whole: Path, undrawn: None) -> dict[str, str]:
    """The whole run's page by section."""
    if whole not in _whole_page:
        _whole_page[whole], told = built(whole)
        assert told == []
    return _whole_page[whole]


def put(content: Any, path: str, value: Any) -> None:
    """Set, or for `...` delete, what a path such as "rows/0/ms" leads to."""
    *parents, last = (int(key) if key.isdecimal() else key for key in path.split("/"))
    for key in parents:
        content = content[key]
    if value is ...:
        del content[last]
    else:
        content[last] = value


def damage(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file, of a file of lines the second line."""
    text = path.read_text()
    if path.suffix == ".json":
        path.write_text(json.dumps(change(json.loads(text))))
        return
    lines = text.splitlines()
    place = min(1, len(lines) - 1)
    lines[place] = json.dumps(change(json.loads(lines[place])))
    path.write_text("\n".join(lines) + "\n")


def check(run: Path, before: dict[str, str], file: str, sentence: str) -> None:
    """The sentence stands in every section that shows the file, the others are as they were."""
    after, told = built(run)
    assert len(told) == 1
    assert told[0].startswith(f"{run}: {file}: ")
    assert sentence in told[0]
    assert len(told[0]) < 700
    assert after.keys() == before.keys()
    for key, text in after.items():
        if key in SHOWN[file]:
            assert f'<p class="fault">{file}: ' in text, key
            assert "yet:" not in text
        else:
            assert text == before[key], key


def test_numbers_and_names_at_their_limits_are_drawn(run: Path) -> None:
    """Figures of the largest and smallest numbers that are read, and of names full of surprises."""
    name = "$\\frac{$ \x1b[31m\x00\u202e" + "é" * 4000

    def rows(content: Any) -> Any:
        for row, size in zip(content["rows"], (1e100, -1e100, 1e-100, 0), strict=False):
            row |= {"frechet": size, "macs_per_image": 1e100, "ms_per_image": 1e-100}
        return content

    def all_of(key: str, values: Any) -> Callable[[Any], Any]:
        def change(content: Any) -> Any:
            for row, value in zip(content[key], values, strict=False):
                row |= value
            return content

        return change

    damage(run / "metrics.json", rows)
    damage(run / "metrics.json", all_of("rows", [{}] * 4 + [{"label": name}] * 3))
    damage(run / "search/front.json", lambda front: {**front, "quality_name": name})
    damage(run / "search/front.json", all_of("points", [{"cost": 1e-100}, {"quality": 1e100}]))
    damage(run / "search/costs.json", all_of("rows", [{"ms": 1e100}, {"macs": 1e-100}]))
    damage(run / "search/history.json", all_of("generations", [{"hypervolume": 1e100}] * 2))
    damage(run / "log.jsonl", lambda row: {**row, "loss_w1.0": 1e100, "loss_w0.25": 0})
    damage(run / "search/steps.json", lambda s: {**s, "gains": [1e100] * 50})
    damage(run / "samples/compare/index.json", all_of("rows", [{"label": name}]))
    after, told = built(run)
    assert told == []
    assert sum(text.count("<img ") for text in after.values()) == 11


@pytest.mark.parametrize(
    ("file", "place", "value", "sentence"),
    [
        ("config.json", "model", [], "model is []; need an object"),
        ("config.json", "model/image_size", "8", "model.image_size is '8'; need a whole number"),
        ("config.json", "train/steps", 10**400, "train.steps is an int of 1329 bits"),
        ("env.json", "cores", 1.5, "cores is 1.5; need a whole number"),
        ("env.json", "versions", [], "versions is []; need an object"),
        ("log.jsonl", "step", "20", "row 2: step is '20'; need a whole number"),
        ("log.jsonl", "loss_w1.0", "nan", "row 2: loss_w1.0 is 'nan'; need a number"),
        ("log.jsonl", "loss_wide", 1.0, "row 2: loss_wide is 'ide'; need a number"),
        ("commands.jsonl", "command", ..., "row 1: lacks 'command'"),
        ("metrics.json", "rows", {}, "rows is {}; need a list"),
        ("metrics.json", "rows/0", None, "rows[0] is None; need an object"),
        ("metrics.json", "rows/0/frechet", EVIL, f"rows[0].frechet is '{EVIL}'; need a number"),
        ("metrics.json", "rows/0/frechet", ..., "rows[0] lacks 'frechet'"),
        ("metrics.json", "rows/0/frechet", 1e308, "rows[0].frechet is 1e+308; need a number from"),
        ("metrics.json", "rows/0/macs_per_image", 0, "need a number of 1e-100 or more"),
        ("metrics.json", "rows/0/images", -1, "rows[0].images is -1; need a whole number of 0 or"),
        ("metrics.json", "rows/0/seeds", "9" * 5000, "need numbers and ranges such as 0-99,200"),
        ("metrics.json", "rows/0/label", LONG, "need text"),
        ("metrics.json", "sampler", [1], "sampler is [1]; need an object"),
        ("metrics.json", "timing", {}, "timing lacks 'ms_per_image'"),
        ("search/archive.jsonl", "genome", [], "row 2: genome is []; need an object"),
        ("search/archive.jsonl", "cost", -1, "row 2: cost is -1; need a number of 1e-100 or more"),
        ("search/front.json", "points", [], "holds no strategies"),
        ("search/front.json", "points/0/cost", "1", "points[0].cost is '1'; need a number"),
        ("search/front.json", "points/0/strategy/cuts", [], "points[0].strategy: Strategy: got 3"),
        ("search/front.json", "chosen", True, "chosen is True; need an object"),
        ("search/front.json", "cost_unit", "s", "cost_unit is 's'; need one of 'macs', 'ms'"),
        ("search/history.json", "generations", None, "generations is None; need a list"),
        ("search/history.json", "generations/0/hypervolume", ..., "lacks 'hypervolume'"),
        ("search/sensitivity.json", "log_snrs/0", "-8", "log_snrs[0] is '-8'; need a number"),
        (
            "search/sensitivity.json",
            "log_snrs/20",
            ...,
            "has 21 values; need one a noise",
        ),
        ("search/sensitivity.json", "errors", [], "errors is []; need an object"),
        ("search/sensitivity.json", "errors", {}, "errors has shape"),
        ("search/sensitivity.json", "errors/nan", [0.0] * 21, "errors['nan'] is nan"),
        ("search/steps.json", "widths/0", 2.0, "widths[0] is 2.0; need a number of 1e-100 to 1"),
        ("search/steps.json", "widths", [0.5], "widths has 1 values; need one a step, 50"),
        ("search/steps.json", "timesteps", [], "timesteps is []; need a list of 1 or more values"),
        ("search/costs.json", "rows", [], "rows is []; need a list of 1 or more values"),
        ("search/costs.json", "rows/0/ms", None, "rows[0].ms is None; need a number"),
        ("samples/compare/index.json", "rows/0/file", 3, "rows[0].file is 3; need text"),
        ("samples/compare/index.json", "rows/0/file", "\x00", "need the name of a PNG file"),
        ("samples/compare/index.json", "rows/0/label", ..., "rows[0] lacks 'label'"),
    ],
)
def test_a_wrong_value_costs_its_section_alone(
    run: Path, before: dict[str, str], file: str, place: str, value: Any, sentence: str
) -> None:
    def change(content: Any) -> Any:
        put(content, place, value)
        return content

    damage(run / file, change)
    check(run, before, file, sentence)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        *((file, "[]") for file in SHOWN),
        *(("metrics.json", text) for text in ("", '{"a": NaN}', "[" * 100_000, "\ud800", "{")),
        *(("log.jsonl", text) for text in ('{"a": NaN}', "[" * 100_000, "\ud800", "{")),
    ],
)
def test_a_file_that_is_none_costs_its_sections_alone(
    run: Path, before: dict[str, str], file: str, text: str
) -> None:
    lines = (run / file).read_text().splitlines() if file.endswith(".jsonl") else [""]
    lines[0] = text or "x"
    (run / file).write_bytes("\n".join([*lines, ""]).encode("utf-8", "surrogatepass"))
    check(run, before, file, "")


def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(
    run: Path, before: dict[str, str]
) -> None:
    (run / "metrics.json").unlink()
    (run / "metrics.json").symlink_to("/proc/self/mem")  # a read of it is an input/output error
    check(run, before, "metrics.json", "Input/output error")


@pytest.mark.parametrize("file", DOCUMENTS)
def test_a_changed_digit_is_seen_in_every_document(
    run: Path, before: dict[str, str], file: str
) -> None:
    document = DOCUMENTS[file].load(run / file)
    document.save(run / file)
    assert built(run) == (before, [])
    text = (run / file).read_text()
    digits = [match.start() for match in re.finditer(r"\d", text[: text.index('"digest"')])]
    place = digits[len(digits) // 2]
    (run / file).write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}")
    check(run, before, file, "does not match its own SHA-256")


def test_an_archive_that_was_cut_is_seen(run: Path, before: dict[str, str]) -> None:
    archive, history = run / "search/archive.jsonl", run / "search/history.json"
    content = json.loads(history.read_text())
    content["generations"][-1]["evaluations"] = 241  # as many as make_run writes
    history.write_text(json.dumps(content))
    assert built(run) == (before, [])
    archive.write_text(archive.read_text()[:-300])
    check(run, before, "search/archive.jsonl", "holds 239 evaluations; need the 241 that search/")


def test_a_damaged_picture_is_left_out(run: Path, before: dict[str, str]) -> None:
    picture = run / "samples/compare/row-1.png"
    picture.write_bytes(picture.read_bytes()[:-20])
    after, told = built(run)
    assert len(told) == 1
    assert "samples/compare/row-1.png: " in told[0]
    assert "need a whole PNG file" in told[0]
    assert (before["samples"].count("<img "), after["samples"].count("<img ")) == (4, 3)


def test_a_fault_of_ours_leaves_the_other_sections_standing(
    run: Path,
    before: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*arguments: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(figures, "cost_figure", broken)
    with caplog.at_level(logging.DEBUG, "ddsm_ext.report"):
        after, told = built(run)
    assert len(told) == 1
    assert "could not be made (KeyError: 'a bug'); this is a fault of ddsm" in told[0]
    assert 'class="fault"' in after["costs"]
    assert {key for key in after if after[key] != before[key]} == {"costs"}
    assert "in broken" in caplog.text  # the traceback


def test_a_fault_of_ours_in_a_reader_leaves_the_other_files_standing(
    run: Path, before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(row: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(LogRow, "from_dict", broken)
    check(run, before, "log.jsonl", "cannot be read (KeyError: 'a bug')")


@pytest.mark.usefixtures("undrawn")
def test_the_command_warns_and_is_done(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--run", str(run)]) == 0
    assert capsys.readouterr().err == ""
    (run / "metrics.json").write_text("{")
    (run / "search/steps.json").write_text('{"timesteps": 3}')
    assert main(["report", "--run", str(run)]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(run / "report.html")
    lines = err.splitlines()
    assert [line.partition(" is ")[0].partition(" lacks ")[0] for line in lines] == [
        f"ddsm: warning: {run}: metrics.json:",
        f"ddsm: warning: {run}: search/steps.json:",
    ]


def test_a_search_that_was_killed_in_its_last_moment_is_said(run: Path) -> None:
    (run / "search").rename(run / ".search-00000")
    after, told = built(run)
    assert "killed while it took the place of another" in told[0]
    assert '<p class="fault">search: ' in after["pareto"]
