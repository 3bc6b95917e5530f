import os
from collections.abc import Generator

import pytest

from bench.harness.process import loading

# Tests run small tensors in several processes on few cores: threads would only wait on each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """A prediction of one's own network looks through all objects but those of modules."""
    with loading():
        return (yield)
