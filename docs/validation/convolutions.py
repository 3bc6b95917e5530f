"""Single convolutions of volumes, as reported to PyTorch for the memory that they take.

github.com/pytorch/pytorch, issues 136479, 128947 and 132300, each with a script of a few lines.
"""

import torch
from torch import Tensor, nn

from .setup import Setup


class _Convolution(nn.Module):
    def __init__(self, channels: int, width: int, padding: int, volume: tuple[int, ...]) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(channels, width, 3, padding=padding)
        self.shape = (1, channels, *volume)

    def forward(self) -> Tensor:
        """The volume is made on the host, in the type of the weights."""
        dtype = self.convolution.weight.dtype
        return self.convolution(torch.empty(self.shape, dtype=dtype, device="cpu").to("cuda"))


class _Autocast(_Convolution):
    def forward(self) -> Tensor:
        """The volume reaches the card in float32, and is made 16-bit there."""
        volume = torch.empty(self.shape, device="cpu").to("cuda").half()
        with torch.autocast("cuda", dtype=torch.float16):
            return self.convolution(volume)


def autocast() -> Setup:
    return Setup(lambda: _Autocast(128, 128, 1, (248, 248, 248)), ())


def float32() -> Setup:
    return Setup(lambda: _Convolution(256, 64, 0, (4, 1090, 1922)), ())


def bfloat16(*volume: int) -> Setup:
    return Setup(lambda: _Convolution(3, 128, 1, volume).bfloat16(), ())
