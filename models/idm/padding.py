"""Volumes whose sides a network cannot halve often enough: a rim around them, taken off again."""

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(
    x: Tensor, multiple: int, value: float = 0.0
) -> tuple[Tensor, tuple[object, ...]]:
    """Puts a rim around volumes or images (B, C, …), up to the next multiple along each axis.

        volume, inside = pad_to_multiple(volume, net.multiple, value=-1)  # the background
        sample = draw(net, volume.shape)[inside]

    Pad the volumes, and not x_t: a network has seen noise everywhere.

    Args:
        value: of the rim.

    Returns:
        What `x` became, with `x` in its middle, and the index that takes it, or a prediction of
        the same sides, out again.
    """
    rims = [-side % multiple for side in x.shape[2:]]
    starts = [rim // 2 for rim in rims]
    ends = zip(reversed(starts), reversed(rims), strict=True)
    padded = F.pad(x, [n for start, rim in ends for n in (start, rim - start)], value=value)
    around = zip(starts, x.shape[2:], strict=True)
    return padded, (..., *(slice(start, start + side) for start, side in around))
