"""What the tests of the baselines share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """These tensors are tiny: on a busy machine, threads would wait for each other, not work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
