"""Names and kinds of what is scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddsm_ext.run import RunConfig, configure
from ddsm_ext.run.strategies import plan_scores, read_strategy
from ddsm_ext.sampling.strategy import Strategy

OWN, OTHER = Strategy((0.5, 1.0), (0.0,)), Strategy((0.5, 1.0), (1.0,))


@pytest.fixture
def config() -> RunConfig:
    return configure("digits", model={"widths": (1, 0.5)}, eval={"images": 8, "ranges": 3})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name, strategy in {"strategy": OWN, "reverse": OTHER}.items():
        strategy.save(tmp_path / "run" / "search" / f"{name}.json")
    return tmp_path / "run"


def test_without_names_it_is_what_a_report_compares(run: Path, config: RunConfig) -> None:
    plan = plan_scores(run, config)
    assert plan.kinds == {
        "full width": "full", "strategy": "strategy", "width 0.5": "width", "reverse": "reverse",
    }  # fmt: skip
    assert (plan.seeds, plan.ranges, plan.images_each) == (list(range(8)), 3, 24)
    assert plan_scores(run, config, [1.0], [3, 5]).ranges == 1


def test_only_the_runs_own_strategy_is_of_the_kind_strategy(run: Path, config: RunConfig) -> None:
    own = run / "search" / "strategy.json"
    copy, mine, namesake = (run.parent / f"{name}.json" for name in ("copy", "mine", "strategy"))
    OWN.save(copy)
    OTHER.save(mine)
    OTHER.save(namesake)
    plan = plan_scores(run, config, [1.0, None, own, OWN, copy, mine, namesake, OTHER, 0.6])
    assert plan.kinds == {
        "full width": "full",
        "strategy": "strategy",
        "copy": "other",
        "mine": "other",
        f"strategy ({namesake})": "other",
        "strategy (5)": "other",
        "width 0.6": "width",
    }
    assert plan.named["strategy"] == OWN


@pytest.mark.parametrize("name", ["full width", "width 0.5", "reverse", "two segments"])
def test_a_file_of_a_reports_name_is_none_of_it(name: str, run: Path, config: RunConfig) -> None:
    file = run.parent / f"{name}.json"
    Strategy((1.0, 0.5), (3.0,)).save(file)
    assert list(plan_scores(run, config, [file]).kinds.values()) == ["other"]


def test_before_a_search_a_strategy_is_nobodys(tmp_path: Path, config: RunConfig) -> None:
    assert plan_scores(tmp_path, config, [OWN]).kinds == {"strategy": "other"}
    assert plan_scores(tmp_path, config, [None]).kinds == {"full width": "full"}


def test_a_search_result_of_the_official_code_says_how_it_becomes_a_strategy(
    tmp_path: Path, config: RunConfig
) -> None:
    (tmp_path / "search.txt").write_text("[1, 0.5][0.5, 0.5]")
    with pytest.raises(ValueError, match=r"search\.txt: is a search result .*`ddsm convert` makes"):
        read_strategy(tmp_path / "search.txt", tmp_path, config)
    (tmp_path / "cut.json").write_text('{"version": 1, "widths": [0.5, 1.0]')
    with pytest.raises(ValueError, match=r"cut\.json: is not JSON"):
        read_strategy(tmp_path / "cut.json", tmp_path, config)


def test_a_search_killed_while_it_took_its_place_is_not_the_full_width(tmp_path: Path) -> None:
    """Between two renames there is no search/, though the run has a strategy."""
    (tmp_path / ".search-00000").mkdir()
    with pytest.raises(ValueError, match="need the same ddsm search once more"):
        read_strategy(None, tmp_path, configure("digits"))
    assert read_strategy(1.0, tmp_path, configure("digits"))[0] == "full width"
    (tmp_path / ".search-00000").rename(tmp_path / "search")
    assert read_strategy(None, tmp_path, configure("digits"))[0] == "full width"
