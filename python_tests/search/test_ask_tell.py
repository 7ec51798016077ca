"""A search asked and told by its caller does what its loop does, and nothing out of turn."""

from __future__ import annotations

import math

import pytest
from search.synthetic import (
    FILES,
    SMALL,
    WIDTHS,
    errors,
    evaluations,
    log_snrs,
    noisy,
    run_search,
    started,
)


def scores_of(asked, steps=12) -> list[list[float]]:
    return [noisy(strategy.widths_for(log_snrs(steps)), samples) for strategy, samples in asked]


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_told_in_parts_it_ends_like_the_loop(tmp_path, at_once):
    config = SMALL
    expected = run_search(tmp_path / "loop", config, 12, errors=errors(12))
    rounds = 0
    with started(tmp_path / "told", config, errors=errors(12)) as asking:
        while asked := asking.ask():
            rounds += 1
            assert asking.ask() == asked
            asking.tell(scores_of(asked)[:at_once])
            known = len(evaluations(tmp_path / "told"))
            assert known == asking.progress.evaluations
        assert asking.finish() == expected
    for file in FILES:
        loop, told = (tmp_path / name / "search" / file for name in ("loop", "told"))
        assert loop.read_bytes() == told.read_bytes()
    rows = [[{**r, "seconds": 0} for r in evaluations(tmp_path / n)] for n in ("loop", "told")]
    assert rows[0] == rows[1]
    if at_once == 1000:
        # a round of constants, of finalists and of the chosen one; the pool and each generation
        # with its doublings: their pairs are 8 against 8, 8 against 16 and 16 against 16 samples
        assert rounds <= 3 + (1 + config.generations) * 3


def test_whole_generations_are_asked_for_and_known_scores_are_not(tmp_path):
    with started(tmp_path, errors=errors(12)) as asking:
        asked = asking.ask()
        assert [(s.widths, samples) for s, samples in asked] == [((w,), range(8)) for w in WIDTHS]
        asking.tell(scores_of(asked))
        pool = asking.ask()
        # the constant widths are in the pool of 8 and known
        assert [samples for _, samples in pool] == [range(8)] * 4
        asking.tell(scores_of(pool)[:1], [0.25])
    assert evaluations(tmp_path)[-1]["seconds"] == 0.25
    with started(tmp_path, errors=errors(12)) as asking:
        assert asking.ask() == pool[1:]


def test_use_out_of_turn_is_refused(tmp_path):
    with started(tmp_path) as asking:
        with pytest.raises(ValueError, match="told 1 scores while 0 are asked for; need"):
            asking.tell([1.0])
        with pytest.raises(ValueError, match="finish while scores are missing; need"):
            asking.finish()
        asked = asking.ask()
        with pytest.raises(ValueError, match="told 5 scores while 4 are asked for; need"):
            asking.tell([1.0] * 5)
        with pytest.raises(ValueError, match="told 2 scores and 1 times; need one a score"):
            asking.tell([1.0, 2.0], [0.1])
        for told in (([1.0, None],), (1.0,), ([1.0], [None]), (["1"],), ([[]],), ([[1.0, "x"]],)):
            with pytest.raises(TypeError, match="need a number, or some numbers, a score"):
                asking.tell(*told)
        assert evaluations(tmp_path) == []
        with pytest.raises(ValueError, match="another search is using it"):
            started(tmp_path)
        asking.tell([math.nan, *scores_of(asked)[1:]])
        with pytest.raises(ValueError, match="the full width's quality is not a finite"):
            asking.ask()
        with pytest.raises(ValueError, match="finish while scores are missing"):
            asking.finish()
