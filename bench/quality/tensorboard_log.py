"""The learning curve for TensorBoard, beside learning.csv."""

from importlib.util import find_spec
from pathlib import Path

from ..errors import UserError
from ..records.rows import Learning


def check_tensorboard() -> None:
    """UserError where the package is not installed."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard: its package is missing; pip install tensorboard, or leave the flag out"
        )


class CurveLog:
    """Event files of one training, in a folder of its own.

    Args:
        after: steps beyond this one that are there already are taken back.
    """

    def __init__(self, folder: Path, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=after + 1)

    def add(self, row: Learning) -> None:
        for name in ("loss_train", "val_mse", "val_mse_ema", "learning_rate", "energy_j"):
            value = getattr(row, name)
            if value is not None:
                self._writer.add_scalar(name, value, row.step)
        self._writer.flush()
