"""The report: self-contained, escaped, complete where data are there and honest where not."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report.make_run import make_run

from ddsm_ext.report import build_report, figures

VOID = {"img", "meta", "br", "link", "input", "hr"}
TITLES = (
    "Samples",
    "Quality",
    "Chosen width of each step",
    "Which steps need the full width",
    "Search",
    "Cost of each width",
    "Training",
    "How this was measured",
    "Commands and configuration",
)


class Page(HTMLParser):
    """Collects what the tests ask about; fails on tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.references: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "action", "data")]
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def change(run: Path, file: str, **values: object) -> None:
    """Lay values over a JSON file of a run; of a section, over its keys."""
    path = run / file
    content = json.loads(path.read_text()) if path.exists() else {}
    for key, value in values.items():
        section = isinstance(value, dict) and isinstance(content.get(key), dict)
        content[key] = {**content[key], **value} if section else value
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def text_of(run: Path) -> str:
    """The page of a run as words with one space between."""
    return " ".join(Page(build_report(run).read_text(encoding="utf-8")).text.split())


def build(tmp_path: Path, parts: str) -> tuple[Page, str]:
    html = build_report(make_run(tmp_path, parts=parts)).read_text(encoding="utf-8")
    return Page(html), html


def test_a_full_run_shows_every_section_with_pictures(tmp_path: Path) -> None:
    page, _ = build(tmp_path, "all")
    for title in TITLES:
        assert page.text.count(title) >= 2, title  # among the links and above the section
    assert "yet" not in page.text
    assert len(page.images) >= 11  # 4 rows of samples, 7 figures
    assert all(image.get("alt") for image in page.images)


def test_the_headline_is_worked_out_from_the_scores(tmp_path: Path) -> None:
    # make_run: the strategy has half the MACs and time, 4.38 against 4.1, 4.5 and 4.3
    page, _ = build(tmp_path, "all")
    assert "50 %" in page.text
    assert "Fréchet distance 4.38 against 4.3 of the full width" in page.text
    # the differences .28, -.1, .06: mean .08, half-width 4.30265 * .190788 / sqrt(3) = .474
    assert "no difference seen (+0.08 ± 0.47)" in page.text
    assert "realised saving 1.00" in page.text


def test_the_page_makes_no_request(tmp_path: Path) -> None:
    page, html = build(tmp_path, "all")
    assert all(r.startswith(("data:image/", "#")) for r in page.references)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    assert "@import" not in html
    assert not re.search(r"url\((?!data:)", html)


@pytest.mark.parametrize("parts", ["trained", "new"])
def test_absent_data_are_named_and_left_out(tmp_path: Path, parts: str) -> None:
    page, _ = build(tmp_path, parts)
    assert "No strategy yet" in page.text
    assert "No scores yet" in page.text
    assert ("No training log yet" in page.text) == (parts == "new")


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evil = "<script>alert('x')</script>\"><img src=http://e.example/>"
    config = json.loads((run / "config.json").read_text())
    config["data"]["source"] = evil
    (run / "config.json").write_text(json.dumps(config))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["rows"][-1]["label"] = evil
    (run / "metrics.json").write_text(json.dumps(metrics))
    index = json.loads((run / "samples/compare/index.json").read_text())
    index["rows"][0]["label"] = evil
    (run / "samples/compare/index.json").write_text(json.dumps(index))
    (run / "commands.jsonl").write_text(json.dumps({"command": evil}) + "\n")
    page = Page(build_report(run).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert all(r.startswith(("data:image/", "#")) for r in page.references)


def test_a_sample_file_outside_the_run_is_not_read(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    index = {"seeds": "0", "rows": [{"label": "x", "file": "../../../secret.png"}]}
    (run / "samples/compare/index.json").write_text(json.dumps(index))
    assert "c2VjcmV0" not in build_report(run).read_text()  # base64 of "secret"


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = build_report(run).read_bytes()
    assert build_report(run).read_bytes() == first


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        build_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="need a run folder"):
        build_report(tmp_path / "missing")


def test_a_run_of_an_earlier_version_is_reported(tmp_path: Path) -> None:
    """The one of `cli/test_stored_run.py`: its search scored by stages, nothing had a digest."""
    stored = Path(__file__).parents[1] / "cli" / "earlier" / "00000-old"
    run = shutil.copytree(stored, tmp_path / stored.name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = Page(build_report(run).read_text(encoding="utf-8"))
    assert len(page.images) == 6  # width 0.5 is compared with nothing, and no samples were drawn
    assert "4 scores of 4 strategies, 3 of them on the front." in " ".join(page.text.split())


def tuned_run(tmp_path: Path, widths: list[float], cuts: list[float], **tune: object) -> Path:
    """A tuned run, before any search of its own."""
    run = make_run(tmp_path, "00001-digits-tune", parts="trained")
    origin = {"origin": "00000-digits", "origin_step": 150, "sandwich_share": 0.1}
    change(
        run,
        "config.json",
        train={"steps": 20, "middle_widths": 1},
        tune={**origin, "widths": widths, "cuts": cuts, **tune},
        diffusion={"schedule": "cosine", "timesteps": 1000},
        sampler={"kind": "ddim", "steps": 5},
    )
    return run


def test_a_tuned_run_shows_its_strategy_and_where_it_comes_from(tmp_path: Path) -> None:
    text = text_of(tuned_run(tmp_path, [0.25, 1.0], [1.0]))
    assert "U-Net tuned from 00000-digits, step 150, on digits (8x8, grey) for 20 steps" in text
    assert "the width of the strategy that it was tuned for" in text
    assert "the search chose" not in text


def test_a_run_tuned_for_a_width_names_it(tmp_path: Path) -> None:
    text = text_of(tuned_run(tmp_path, [0.5], []))
    assert "each denoising step runs it at width 0.5, for which it was tuned." in text


def test_a_tuned_run_with_a_search_of_its_own_runs_what_that_chose(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    change(run, "config.json", tune={"origin": "a", "origin_step": 9, "widths": [0.5],
                                     "sandwich_share": 0.1})  # fmt: skip
    text = text_of(run)
    assert "tuned from a, step 9," in text
    assert "each denoising step runs it at the width that the search chose." in text


@pytest.mark.parametrize(
    ("middle", "share", "sentence"),
    [
        (1, None, "The sandwich rule trains the widest, the narrowest and a random middle width "
                  "each step."),
        (2, None, "The sandwich rule trains the widest, the narrowest and 2 random middle widths "
                  "each step."),
        (9, None, "and 2 random middle widths each step."),  # there are no more
        (0, None, "The sandwich rule trains the widest and the narrowest width each step."),
        (1, 0.1, "the noise levels that it serves; 10 % of the steps train the widest, the "
                 "narrowest and a random middle width, by the sandwich rule."),
        (1, 0.0, "the noise levels that it serves. How this was measured"),
    ],
)  # fmt: skip
def test_what_a_step_trained_is_said(
    tmp_path: Path, middle: int, share: float | None, sentence: str
) -> None:
    if share is None:
        run = make_run(tmp_path, parts="trained")
    else:
        run = tuned_run(tmp_path, [0.25, 1.0], [1.0], sandwich_share=share)
    change(run, "config.json", train={"middle_widths": middle})
    assert sentence in text_of(run)


def test_a_strategy_of_a_search_is_drawn_once_on_the_scale_of_the_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)

    def row(widths: list[float], samples: list[int], quality: float, generation: int) -> str:
        genome = {"boundaries": [1][: len(widths) - 1], "widths": widths}
        return json.dumps({"genome": genome, "samples": samples, "cost": 1e8 * len(widths),
                           "quality": quality, "generation": generation})  # fmt: skip

    scores = [
        row([1.0], [0, 8], 3.0, 0),
        row([0.5, 1.0], [0, 8], 3.5, 0),
        row([0.25, 1.0], [0, 8], 4.0, 1),
        row([1.0], [8, 16], 2.0, 1),
        row([0.5, 1.0], [8, 16], 2.25, 1),
    ]
    (run / "search/archive.jsonl").write_text("\n".join(scores) + "\n")
    change(run, "search/front.json", quality_name="Fréchet distance, extrapolated to infinite N")
    drawn = []
    draw = figures.pareto_figure
    monkeypatch.setattr(
        figures, "pareto_figure", lambda points, *more: drawn.append(points) or draw(points, *more)
    )
    text = text_of(run)
    # the full width has 0.5 in make_run's front; the others 0.25 and 1 more than it had beside them
    assert drawn == [[(0, 100.0, 0.5), (0, 200.0, 0.75), (1, 200.0, 1.5)]]
    assert "5 scores of 3 strategies" in text
    assert "extrapolated to infinite N, scores are lower than in the table" in text


def test_one_thread_is_one(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "in batches of 256, 2 threads." in text_of(run)
    change(run, "search/costs.json", threads=1)
    assert "in batches of 256, 1 thread." in text_of(run)


def test_what_decoding_takes_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "Decoder:" not in text_of(run)
    change(run, "search/costs.json", decoding={"macs": 30_500_000, "ms": 1.5})
    codec = {"kind": "kl", "factor": 8, "image_channels": 3, "scale": 0.2}
    change(run, "config.json", codec=codec)
    text = text_of(run)
    assert "(latents of 1x8x8, images of 64x64, colour)" in text
    assert "Decoder: 30.5 million MACs and 1.5 ms an image, which no width saves; " in text
    assert "% of the strategy's MACs." in text
    assert "Of the steps alone, without the decoder, it saves" in text
