"""Methods of parts that others here have, too: their tests are in the slow suite."""

from collections.abc import Iterable
from typing import Any

import pytest

RELATED = (
    "checkpoint", "idm-stored", "idm-fine", "idm-fine-lean", "idm-fine-stored", "unet-attention",
    "iunet", "revunet",
)  # fmt: skip


def slow_if_related(names: Iterable[str]) -> list[Any]:
    """Values to parametrize a test with."""
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in RELATED else name for name in names
    ]
