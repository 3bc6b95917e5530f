"""Methods of parts that others here have, too: not tested as often as those."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

FORMS = (
    "checkpoint", "idm-stored", "idm-fine", "idm-fine-lean", "idm-fine-stored", "unet-attention",
)  # fmt: skip
"""Of other methods here."""
RELATED = (*FORMS, "iunet", "revunet")


def slow_if_related(names: Iterable[str]) -> list[Any]:
    """Values to parametrize a test with."""
    return [
        pytest.param(name, marks=pytest.mark.thorough) if name in FORMS
        else pytest.param(name, marks=pytest.mark.slow) if name in RELATED
        else name
        for name in names
    ]  # fmt: skip


def slow_but(everyday: Collection[str], names: Iterable[str]) -> list[Any]:
    """Of `names`, `everyday` are so tested; the others are slow, or as forms of others thorough."""
    return [*everyday, *slow_unless_form(name for name in names if name not in everyday)]


def slow_unless_form(names: Iterable[str]) -> list[Any]:
    """Slow, or of a form of another method thorough."""
    return [pytest.param(name, marks=_slow_or_thorough(name not in FORMS)) for name in names]


def slow_every(count: int, values: Iterable[Any], ids: Any = str) -> list[Any]:
    """The first and each `count`-th after it is slow, the others are thorough."""
    return [
        pytest.param(value, id=ids(value), marks=_slow_or_thorough(index % count == 0))
        for index, value in enumerate(values)
    ]


def _slow_or_thorough(slow: bool) -> pytest.MarkDecorator:
    return pytest.mark.slow if slow else pytest.mark.thorough
