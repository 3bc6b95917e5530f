"""What training needs, without a GPU and without computing it.

    from bench.predict import predict    # predict(network, batch, optimizer), or a method's name

prediction.py   a training step on fake tensors: peak, its five parts, FLOPs
fake.py         fake tensors, faithful to the byte
card.py         the device that they lie on, which follows CUDA's rules
autocast.py     CUDA's autocast lists, from PyTorch's own header
attention.py    the attention kernel that a card takes
own.py          anybody's network, optimizer and loss, unchanged
cluster.py      one card of several: FSDP2, DDP
allocator.py    PyTorch's caching allocator, played on paper
alloc_conf.py   its settings, PYTORCH_ALLOC_CONF
peaks.py        the command `predict`
fit.py          the command `fit`: largest batch and cube in so much memory
recommend.py    the command `recommend`: networks and techniques for a volume and a card
search.py       the bisection that it uses
gpus.py         cards by name, from cards.csv
scale.py        the command `scale`: peak against depth, volume and batch
check.py        the command `check`: peaks against a committed baseline
parallel.py     independent predictions, a core each
"""

from .prediction import Device, Prediction, predict, predict_method

__all__ = ["Device", "Prediction", "predict", "predict_method"]
