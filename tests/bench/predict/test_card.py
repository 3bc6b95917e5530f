"""What a loss asks of a card: types given by position, axes named by a small tensor."""

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import nn

from bench.predict import predict


def predicted(loss):
    network = nn.Conv3d(1, 3, 3, padding=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def under_autocast(network, batch):
        with torch.autocast("cuda", dtype=torch.float16):
            return loss(network(batch))

    return predict(network, torch.empty(2, 1, 8, 8, 8), optimizer, under_autocast)


def test_a_type_by_position_is_one_that_is_asked_for():
    """`log_softmax` is float32 under autocast; `cross_entropy` asks for its input's own type."""
    labels = torch.zeros(2, 8, 8, 8, dtype=torch.long)
    logits = 2 * 3 * 8**3

    def sizes(loss):
        return {
            change.nbytes for change in predicted(loss).changes
            if change.storage.operator == "aten._log_softmax.default" and change.nbytes > 0
        }  # fmt: skip

    assert sizes(lambda output: F.log_softmax(output, 1).sum()) == {4 * logits}
    assert sizes(lambda output: F.cross_entropy(output, labels.to("cuda"))) == {2 * logits}


def test_the_axes_of_a_small_tensor_are_known():
    """MONAI's losses reduce over `torch.arange(2, 5).tolist()`."""
    seen = []

    def loss(output):
        axes = torch.arange(2, 5, device="cuda")
        seen.append((axes.tolist(), [int(axis) for axis in axes.view(3, 1)], axes[1:].tolist()))
        return output.sum(seen[0][0]).sum() + DiceLoss(sigmoid=True)(output, output.detach())

    prediction = predicted(loss)
    assert seen[0] == ([2, 3, 4], [2, 3, 4], [3, 4])
    assert not prediction.assumptions


def test_what_is_written_to_a_small_tensor_is_not_known():
    read = []

    def loss(output):
        count = torch.arange(1, 2)
        count.add_(1)
        read.append(count.item())
        return output.sum()

    assert predicted(loss).assumptions
    assert read[0] == 1  # what is taken for an integer
