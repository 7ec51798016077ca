"""SHA-256 of JSON values: a file that carries its own shows what happened to it since."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ddsm_ext.io.files import to_json
from ddsm_ext.settings import Refusal

KEY = "digest"


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, in hexadecimal; keys in any order give the same.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value has no JSON form.
    """
    return hashlib.sha256(to_json(value, canonical=True).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its SHA-256 beside its keys."""
    return {**content, KEY: json_digest(content)}


def unsealed(content: Any, source: str) -> Any:
    """Return what was sealed; a value without a digest, written by hand or before, as it is.

    Args:
        content: parsed JSON.
        source: what to call it in errors, e.g. its file name.

    Raises:
        ValueError: it is not what was sealed.
    """
    if not isinstance(content, Mapping) or KEY not in content:
        return content
    held = {key: value for key, value in content.items() if key != KEY}
    if content[KEY] != json_digest(held):
        raise Refusal(
            f"{source}: does not match its own SHA-256; need it as it was written, or, where the "
            f"change is meant, without its {KEY!r}"
        )
    return held
