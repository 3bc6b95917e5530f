"""ResNets and RevNets of MemCNN on CIFAR-10, stored and inverted (Gomez et al. 2017).

github.com/silvandeleemput/memcnn: memcnn/config/experiments.json has the settings, README.rst the
figures, memcnn/trainers/classification.py what they count.
"""

import torch
from memcnn.models import resnet
from memcnn.utils.loss import CrossEntropyLossTF
from torch import Tensor, nn

from bench.predict import Prediction
from bench.predict.alloc_conf import ROUND, round_up
from bench.probes.cost import Phase
from bench.probes.memory import Part

from .setup import Setup

_RESNET = (16, 16, 32, 64)
_NETWORKS = {
    ("ResNet", 32): (resnet.BasicBlock, (5, 5, 5), _RESNET),
    ("ResNet", 110): (resnet.BasicBlock, (18, 18, 18), _RESNET),
    ("ResNet", 164): (resnet.Bottleneck, (18, 18, 18), _RESNET),
    ("RevNet", 38): (resnet.RevBasicBlock, (3, 3, 3), (32, 32, 64, 112)),
    ("RevNet", 110): (resnet.RevBasicBlock, (9, 9, 9), (32, 32, 64, 128)),
    ("RevNet", 164): (resnet.RevBottleneck, (9, 9, 9), (32, 32, 64, 128)),
}
"""Family and depth -> block, blocks of each level, channels."""


def train(family: str, depth: int, batch: int = 100) -> Setup:
    block, layers, channels = _NETWORKS[family, depth]
    network = resnet.ResNet(
        block, layers, num_classes=10, channels_per_layer=channels, strides=(1, 1, 2, 2),
        init_max_pool=False, init_kernel_size=3, batch_norm_fix=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    images, labels = torch.empty(batch, 3, 32, 32), torch.zeros(batch).long()
    return Setup(network, (images, labels), optimizer, _Loss())


class _Loss:
    """The loss of the forward pass, which is kept; a backward pass that does not go through it.

    MemCNN 1.5.2 puts inputs back with `set_`, which PyTorch now counts as a change of what ReLU
    saved, so that RevNets' own backward pass fails, here as on a card. The figures are of the
    moment before it.
    """

    def __call__(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        self.kept = CrossEntropyLossTF()(network(images), labels)
        return torch.stack([parameter.sum() for parameter in network.parameters()]).sum()


def activation_bytes(prediction: Prediction, network: nn.Module) -> int:
    """As the trainer counts them: allocated after the forward pass, without the model.

    From its second step on, gradients and momentum would be in it; the figures are without (RevNet
    38 and 110 differ by 0.1 MiB, and these two would by 10).
    """
    forward = prediction.phases.count(Phase.FORWARD)
    alive = sum(
        round_up(abs(change.nbytes), ROUND) * (1 if change.nbytes > 0 else -1)
        for change in prediction.changes
        if change.operator <= forward and change.storage.part in (Part.ACTIVATION, Part.OTHER)
    )
    return alive - sum(round_up(buffer.nbytes, ROUND) for buffer in network.buffers())
