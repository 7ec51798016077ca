"""The archive belongs to one search, keeps every line, and says what is wrong with a bad one."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
from search.synthetic import WIDTHS, log_snrs

from ddsm_ext.io.digest import json_digest
from ddsm_ext.io.files import read_jsonl
from ddsm_ext.search.archive import Archive
from ddsm_ext.search.genome import Genome, StrategySpace

SPACE = StrategySpace(log_snrs(20), WIDTHS, 3)
IDENTITY = {"checkpoint": "abc", "seed": 0, "widths": list(WIDTHS)}
A, B = Genome((4,), (2, 0)), Genome((), (1,))
FEW, MORE = range(8), range(16)


def fill(path):
    with Archive(path, IDENTITY, SPACE) as archive:
        archive.add(A, FEW, [0.1 + 0.2, 1.0], {"generation": 0})
        archive.add(A, MORE, [0.5, math.nan], {"generation": 1})
        archive.add(B, range(32, 40), [2.0], {"generation": 1})


def test_scores_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "search" / "archive.jsonl"
    fill(path)
    with Archive(path, IDENTITY, SPACE) as archive:
        assert len(archive) == 3
        assert archive.get(A, FEW) == (0.1 + 0.2, 1.0)
        assert archive.get(A, MORE) == (math.inf,)
        assert archive.get(B, range(32, 40)) == (2.0,)
        assert archive.get(B, FEW) is None
        assert archive.get(A, range(1, 8)) is None
    header, first, failed, _ = read_jsonl(path)
    assert header["identity"] == IDENTITY
    digest = first.pop("digest")
    text = json.dumps([header["digest"], first], sort_keys=True, separators=(",", ":"))
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert first == {
        "kind": "evaluation",
        "genome": {"boundaries": [4], "widths": [0.5, 1.0]},
        "samples": [0, 8],
        "generation": 0,
        "values": [0.1 + 0.2, 1.0],
        "failed": False,
    }
    assert (failed["values"], failed["failed"]) == (None, True)


def test_identity_is_compared_by_content(tmp_path):
    path = tmp_path / "archive.jsonl"
    fill(path)
    Archive(path, {"widths": WIDTHS, "seed": 0, "checkpoint": "abc"}, SPACE).close()
    before = path.read_bytes()
    for change, sentence in (
        ({"checkpoint": "xyz"}, 'made with checkpoint "abc", this search has "xyz"'),
        ({"seed": 1}, "made with seed 0, this search has 1"),
        ({"sampler": "ddim"}, 'made with sampler null, this search has "ddim"'),
        ({"widths": [1.0] * 100}, r"this search has \[1.0, .*\.\.\. \(digest [0-9a-f]{12}\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Archive(path, {**IDENTITY, **change}, SPACE)
    assert path.read_bytes() == before
    assert json_digest({"a": 1, "b": 2}) == json_digest({"b": 2, "a": 1})


def test_torn_anywhere_in_the_last_line(tmp_path):
    path = tmp_path / "archive.jsonl"
    fill(path)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(whole) - 1):
        path.write_bytes(whole[:end])
        with Archive(path, IDENTITY, SPACE) as archive:
            assert len(archive) == 2
            archive.add(B, range(32, 40), [2.0], {"generation": 1})
        assert path.read_bytes() == whole


def test_torn_header_begins_anew(tmp_path):
    path = tmp_path / "archive.jsonl"
    path.write_bytes(b'{"kind": "hea')
    with Archive(path, IDENTITY, SPACE) as archive:
        assert len(archive) == 0
    assert read_jsonl(path)[0]["identity"] == IDENTITY


def test_damage_is_named(tmp_path):
    path = tmp_path / "archive.jsonl"
    fill(path)
    lines = path.read_text().splitlines()
    with Archive(tmp_path / "other.jsonl", {**IDENTITY, "seed": 1}, SPACE) as archive:
        archive.add(B, range(32), [2.0], {"generation": 1})
    other = (tmp_path / "other.jsonl").read_text().splitlines()[1]  # of another search
    cases = [
        (["{}", *lines[1:]], "has no header line"),
        ([lines[0].replace('"abc"', '"abd"'), *lines[1:]], "the header is damaged"),
        ([lines[0].replace('"version": 3', '"version": 9')], "version is 9"),
        # an archive of the search by cheap and full stages
        ([lines[0].replace('"version": 3', '"version": 1')], "version is 1; this program reads 3"),
        ([lines[0], json.dumps({"genome": 1}), *lines[2:]], "row 2 is no evaluation"),
        ([lines[0], lines[1].replace("0.5", "0.6"), *lines[2:]], "row 2 is no evaluation"),
        ([lines[0], lines[1].replace("[4]", "[99]"), *lines[2:]], "row 2 is no evaluation"),
        ([lines[0], lines[1].replace("[4]", '["4"]'), *lines[2:]], "row 2 is no evaluation"),
        ([lines[0], lines[1].replace("[0, 8]", "[0]"), *lines[2:]], "row 2 is no evaluation"),
        ([lines[0], lines[1].replace("[0, 8]", "[8, 8]"), *lines[2:]], "row 2 is no evaluation"),
        ([lines[0], lines[1].replace("[0, 8]", "[0, 8, 2]"), *lines[2:]], "row 2 is no evaluation"),
        ([lines[0], lines[1].replace(", 1.0]", ", null]"), *lines[2:]], "row 2 is no evaluation"),
        ([lines[0], lines[1].replace(", 1.0]", ", NaN]"), *lines[2:]], "line 2 is no JSON"),
        ([lines[0], lines[1][:20], *lines[2:]], "line 2"),
        ([lines[0], lines[1].replace("[0, 8]", "[0, 9]"), *lines[2:]], "row 2 does not match its"),
        ([lines[0], lines[1].replace("0.30000", "0.40000"), *lines[2:]], "row 2 does not match"),
        ([lines[0], lines[1].replace('"digest"', '"dig"'), *lines[2:]], "row 2 does not match its"),
        ([*lines, lines[2]], r"row 5 is of .* an earlier row.* 3 evaluations are kept"),
        ([*lines, other], "row 5 does not match its SHA-256"),
    ]
    for changed, sentence in cases:
        path.write_text("\n".join(changed) + "\n")
        with pytest.raises(ValueError, match=f"archive.jsonl.*{sentence}"):
            Archive(path, IDENTITY, SPACE)


def test_an_identity_that_no_file_holds_is_refused(tmp_path):
    for value in (math.nan, tmp_path):
        with pytest.raises(TypeError, match="search: identity is not JSON: "):
            Archive(tmp_path / "archive.jsonl", {"checkpoint": value}, SPACE)
    assert list(tmp_path.iterdir()) == []


def test_one_search_at_a_time(tmp_path):
    path = tmp_path / "archive.jsonl"
    with (
        Archive(path, IDENTITY, SPACE),
        pytest.raises(ValueError, match="another search is using it"),
    ):
        Archive(path, IDENTITY, SPACE)
    Archive(path, IDENTITY, SPACE).close()
