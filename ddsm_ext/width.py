"""Widths: their check, their one rounding to channels, how one is looked up. No torch."""

import math
from collections.abc import Callable, Iterable

from ddsm_ext.settings import Refusal, TypeRefusal, shown


def check_width(width: float) -> float:
    """Return `width` as a float after checking that it lies in (0, 1].

    Args:
        width: fraction of the channels to keep; any real number type.

    Raises:
        TypeError: `width` is no real number (text, None, a bool, a complex number).
        ValueError: `width` is outside (0, 1] or NaN.
    """
    try:
        if isinstance(width, (bool, str, bytes)):
            raise TypeError
        value = float(width)
    except (OverflowError, TypeError, ValueError):
        raise TypeRefusal(f"width is {shown(width)}; need a number with 0 < width <= 1") from None
    if not 0.0 < value <= 1.0:
        raise Refusal(f"width is {value:g}; need 0 < width <= 1")
    return value


def sorted_widths(
    owner: str, widths: Iterable[float], check: Callable[[float], float] = check_width
) -> tuple[float, ...]:
    """Return the widths of a configuration, widest first, each checked.

    Args:
        owner: whose they are, for errors.
        widths: one or more, each once.
        check: returns a width as a float, or refuses it.

    Raises:
        TypeError: they are no sequence, or one is no number.
        ValueError: one is refused, none is there, or one is there twice.
    """
    if not isinstance(widths, Iterable) or isinstance(widths, str | bytes):
        raise TypeRefusal(f"{owner}: widths is {shown(widths)}; need a sequence of numbers")
    widths = tuple(widths)
    try:
        checked = tuple(check(width) for width in widths)
    except Refusal as error:
        raise type(error)(f"{owner}: widths is {shown(widths)}: {error}") from None
    if not checked:
        raise Refusal(f"{owner}: widths is (); need at least one width")
    if len(set(checked)) != len(checked):
        raise Refusal(f"{owner}: widths is {shown(checked)}; need each width once")
    return tuple(sorted(checked, reverse=True))


def active_channels(c_max: int, width: float, multiple: int = 8) -> int:
    """Nearest multiple of `multiple` to `c_max * width`, never more than 10 % below it.

    The result is at least one `multiple` and at most `c_max`; width 1 is always all of `c_max`.

    Args:
        c_max: allocated channels.
        width: fraction of the channels to keep, 0 < width <= 1.
        multiple: channels are kept in steps of this many.

    Returns:
        Active channels, 1 <= c <= c_max.

    Raises:
        TypeError, ValueError: an argument is no number or out of range.

    Source: `make_divisible` of MobileNet (TensorFlow slim) as DDSM's reference code applies it to
        `c_max * width`.
    """
    value = check_width(width)
    if c_max < 1 or multiple < 1:
        raise Refusal(f"active_channels: c_max is {c_max}, multiple is {multiple}; need both >= 1")
    if c_max % multiple and value == 1.0:
        return c_max
    wanted = c_max * value
    nearest = int(wanted + multiple / 2) // multiple * multiple
    lowest = -int(-0.9 * wanted // multiple) * multiple  # first multiple at or above 90 %
    # max and min instead of branches: they need no graph of their own under torch.compile.
    return min(max(nearest, lowest, multiple), c_max)


def find_width(widths: Iterable[float], width: float) -> int | None:
    """Return where a width is among others, or None.

    One read back from text or made by arithmetic may differ in its last bits.
    """
    for index, known in enumerate(widths):
        if math.isclose(known, width, rel_tol=1e-9):
            return index
    return None
