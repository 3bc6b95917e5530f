"""Segmentation of brain tumours: nnU-Net's default, MONAI's SegResNet.

nnU-Net: github.com/MIC-DKFZ/nnUNet, documentation/resenc_presets.md. SegResNet:
github.com/Project-MONAI/tutorials, acceleration/distributed_training/brats_training_ddp.py.
"""

import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from monai.losses import DiceLoss
from monai.networks.nets import SegResNet
from torch import Tensor, nn

from .setup import Setup, scaled


def nnunet() -> Setup:
    """`3d_fullres` as it is planned for BraTS: 128³, batch 2, deep supervision at five scales."""
    network = PlainConvUNet(
        input_channels=4, n_stages=6, features_per_stage=(32, 64, 128, 256, 320, 320),
        conv_op=nn.Conv3d, kernel_sizes=3, strides=(1, 2, 2, 2, 2, 2), n_conv_per_stage=2,
        num_classes=4, n_conv_per_stage_decoder=2, conv_bias=True,
        norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True
    )
    targets = [torch.zeros(2, 1, *(128 >> level,) * 3) for level in range(5)]
    return Setup(network, (torch.empty(2, 4, 128, 128, 128), targets), optimizer, _deep_dice_and_ce)


def _deep_dice_and_ce(network: nn.Module, batch: tuple[Tensor, list[Tensor]]) -> Tensor:
    images, targets = batch
    with torch.autocast("cuda", dtype=torch.float16):
        outputs = network(images)
        # The lowest scale has no weight, and is left out.
        pairs = list(zip(outputs, targets, strict=True))[:-1]
        losses = [_dice_and_ce(*pair) / 2**level for level, pair in enumerate(pairs)]
        return scaled(torch.stack(losses).sum())


def _dice_and_ce(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy, and soft Dice of the foreground over the batch."""
    labels = target.long()
    with torch.no_grad():
        one_hot = torch.zeros(output.shape, device=output.device, dtype=torch.bool)
        one_hot.scatter_(1, labels, True)
        one_hot = one_hot[:, 1:]
        size = one_hot.sum((0, 2, 3, 4))
    share = torch.softmax(output, 1)[:, 1:]
    overlap, total = (share * one_hot).sum((0, 2, 3, 4)), share.sum((0, 2, 3, 4))
    dice = (2 * overlap + 1e-5) / (size + total + 1e-5).clamp_min(1e-8)
    return F.cross_entropy(output, labels[:, 0]) - dice.mean()


def segresnet() -> Setup:
    network = SegResNet(
        blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1), init_filters=16, in_channels=4,
        out_channels=3, dropout_prob=0.2,
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=1e-5)
    sides = (224, 224, 144)
    batch = (torch.empty(1, 4, *sides), torch.empty(1, 3, *sides))
    return Setup(network, batch, optimizer, _dice)


def _dice(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    criterion = DiceLoss(smooth_nr=0, smooth_dr=1e-5, squared_pred=True, sigmoid=True)
    with torch.autocast("cuda", dtype=torch.float16):
        return scaled(criterion(network(images), labels))
