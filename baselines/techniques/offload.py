"""What autograd saves waits in the host's memory.

Each saved tensor of at least `offload_bytes` (`--offload-bytes`) is copied to pinned memory in the
forward pass and back in the backward pass (Rhu et al. 2016, arXiv:1602.08124). On CUDA the copies
to the host run on a stream of their own, beside the computation, which waits for each before the
next begins: so that one tensor at most, already done with, is still on the card. (Leaving that to
the allocator, by `record_stream`, was measured on a card: the program runs ahead of the copies and
finds none of their memory free.) A tensor that several operators save is copied once; weights,
which stay on the card anyway, are not.
"""

import weakref
from typing import Any

import torch
from torch import Tensor

KIND = "exact"
WORK = {"offload_bytes": 2**20}
ON_CPU = "offload: on a CPU, host and device are one, so nothing is moved and nothing saved"


def saving(work: Any, device: torch.device) -> "Offload":
    return Offload(work.offload_bytes, device)


class Offload(torch.autograd.graph.saved_tensors_hooks):
    """Entered around a forward pass.

    Args:
        least: bytes from which on a tensor is moved.
        device: whose tensors are; those of other devices stay.
    """

    def __init__(self, least: int, device: torch.device) -> None:
        super().__init__(self._pack, self._unpack)
        self.least, self.device = least, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.copies: weakref.WeakValueDictionary[Any, Tensor] = weakref.WeakValueDictionary()
        self.leaving: tuple[torch.UntypedStorage, torch.cuda.Event | None] | None = None
        """What is being copied, and when that is done."""

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        self._settle()

    def _pack(self, tensor: Tensor) -> tuple[Tensor, bool]:
        here = tensor.device.type == self.device.type != "cpu"
        is_weight = tensor.is_leaf and tensor.requires_grad
        if not here or is_weight or tensor.nbytes < self.least:
            return tensor, False
        storage = tensor.untyped_storage()
        key = id(storage), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor._version
        copy = self.copies.get(key)
        if copy is None:
            self.copies[key] = copy = self._to_host(tensor)
            # Another storage may get this one's address when it is gone.
            weakref.finalize(storage, self.copies.pop, key, None)
        return copy, True

    def _unpack(self, packed: tuple[Tensor, bool]) -> Tensor:
        tensor, moved = packed
        if not moved:
            return tensor
        self._settle()
        return tensor.to(self.device, non_blocking=True)

    def _to_host(self, tensor: Tensor) -> Tensor:
        self._settle()
        copy = torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu",
            pin_memory=self.stream is not None,
        )  # fmt: skip
        done = None
        if self.stream is None:
            copy.copy_(tensor)
        else:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                copy.copy_(tensor, non_blocking=True)
            done = self.stream.record_event()
        self.leaving = tensor.untyped_storage(), done
        return copy

    def _settle(self) -> None:
        """What is computed from here on may have the memory of what was leaving."""
        if self.leaving is None:
            return
        _, done = self.leaving
        if done is not None:
            torch.cuda.current_stream(self.device).wait_event(done)
        self.leaving = None
