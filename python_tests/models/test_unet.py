"""UNetConfig: rounding, refusals in one sentence, JSON values, presets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddsm_ext.models.unet import UNetConfig

REFERENCE = {"norm": "fixed_groups", "concat_slicing": "prefix"}


def make(**changes: object) -> UNetConfig:
    return UNetConfig.from_dict({"image_size": 32, **changes})


@given(st.floats(0.001, 1.0))
def test_every_width_keeps_the_same_share_of_every_layer(width: float) -> None:
    config = make(ch=96, ch_mult=(1, 2, 3), groups=32)
    width = config.check_width(width)
    shares = {config.slicing.active(c, width) * 32 // c for c in (96, 192, 288, 384)}
    assert len(shares) == 1
    for c in (96, 192, 288, 96 + 192, 288 + 192):
        active = config.slicing.active(c, width)
        assert active % (c // 32) == 0
        assert config.slicing.group_count(c, active) == active * 32 // c


@pytest.mark.parametrize("width", [1.0, 0.75, 0.5, 0.25])
def test_reference_rounding_at_the_paper_widths(width: float) -> None:
    config = make(**REFERENCE)
    for c in (128, 256, 512):
        for role in ("conv", "linear", "qkv"):
            assert config.slicing.active(c, width, role) == c * width
    assert config.slicing.group_count(256, 128) == 32


def test_heads_round_to_whole_heads() -> None:
    config = make(ch=192, ch_mult=(1, 2), head_channels=64)
    # 288 of 384 channels are four and a half heads of 64: five.
    assert config.slicing.active(384, 0.75) == 288
    assert config.slicing.active(384, 0.75, "qkv", 64) == 320


@pytest.mark.parametrize(
    ("changes", "width", "message"),
    [
        # 128 * 0.3 = 38.4 -> 40 channels in steps of 8, which 32 groups do not divide.
        (REFERENCE, 0.3,
         "width 0.3 gives 40 of 128 channels; need a multiple of 32 (norm is fixed_groups); "
         "near usable widths: 0.25, 0.5"),
        # 128 * 0.56 = 71.68 -> 72 in steps of 8, 64 in steps of 16.
        ({**REFERENCE, "groups": 8}, 0.56,
         "width 0.56 gives 72 of 128 channels but 80 for the time embedding's projection; need "
         "equal counts (norm is fixed_groups); near usable widths: 0.5, 0.625"),
        # 256 * 0.49 = 125.44 -> 128 channels, but 125 queries.
        ({**REFERENCE, "groups": 32}, 0.49,
         "width 0.49 gives 128 of 256 channels but 125 for queries, keys and values; need equal "
         "counts (norm is fixed_groups); near usable widths: 0.25, 0.5"),
    ],
)  # fmt: skip
def test_unusable_width_is_one_sentence(
    changes: dict[str, object], width: float, message: str
) -> None:
    with pytest.raises(ValueError, match="need") as caught:
        make(**changes).check_width(width)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image_size": 30}, ValueError, "image_size is 30; need a multiple of 8 for 4 levels"),
        ({"image_size": "32"}, TypeError, "image_size is '32'; need an int >= 1"),
        ({"ch": 130}, ValueError, "ch is 130; need a multiple of groups, 32"),
        ({"ch": 33, "groups": 1}, ValueError, "ch is 33; need an even number"),
        ({"ch_mult": []}, ValueError, "ch_mult is (); need one multiple a level"),
        ({"ch_mult": [1, 0]}, ValueError, "need integers >= 1"),
        ({"ch_mult": 2}, TypeError, "ch_mult is 2; need a sequence of integers"),
        ({"attn": [4]}, ValueError, "need levels from 0 to 3, as many as ch_mult has"),
        ({"dropout": 1.0}, ValueError, "dropout is 1.0; need 0 <= dropout < 1"),
        ({"norm": "fixed_group"}, ValueError, "did you mean fixed_groups?"),
        ({"concat_slicing": "sources"}, ValueError, "did you mean source?"),
        ({"widths": [1.0, 1]}, ValueError, "need each width once"),
        ({"widths": [2]}, ValueError, "width is 2; need 0 < width <= 1"),
        ({"widths": []}, ValueError, "widths is (); need at least one width"),
        ({"widths": "1.0"}, TypeError, "widths is '1.0'; need a sequence of numbers"),
        ({"widths": [0.3], **REFERENCE}, ValueError, "near usable widths: 0.25, 0.5"),
        ({"head_channels": 48}, ValueError, "head_channels is 48; need a divisor of the 256"),
        ({"ch_mul": [1]}, ValueError, "unknown key 'ch_mul'; did you mean ch_mult?"),
        ({"num_res_blocks": True}, TypeError, "num_res_blocks is True; need an int >= 1"),
    ],
)
def test_bad_field(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_image_size_is_required() -> None:
    with pytest.raises(TypeError, match="image_size is missing"):
        UNetConfig.from_dict({})
    with pytest.raises(TypeError, match="got list; need a mapping"):
        UNetConfig.from_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch": 10**9}, "weights; need at most"),
        ({"ch": 32 * 10**30}, "need an int <="),
        ({"ch_mult": (1, 10**9)}, "weights; need at most"),
        ({"ch_mult": (1, 10**30)}, "weights; need at most"),
        ({"ch_mult": (1,) * 10**5}, "of at most 15"),
        ({"attn": (0,) * 10**5}, "as many as ch_mult has"),
        ({"num_res_blocks": 10**5}, "need an int <= 32"),
        ({"num_res_blocks": 10**400}, "need an int <= 32"),
        ({"image_size": 10**9}, "need an int <= 16384"),
        ({"image_channels": 10**9}, "need an int <= 4096"),
        ({"groups": 10**400}, "need an int <="),
        ({"time_table_rows": 10**9}, "need an int <= 1000000"),
    ],
)
def test_what_no_machine_holds_is_refused_by_arithmetic(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
