"""Autocast to float16, the loss scaled so that small gradients do not become 0.

Micikevicius et al. 2018, arXiv:1710.03740; the scale is that of `torch.amp.GradScaler`.
"""

KIND = "rounded"
WORK = {"precision": "fp16"}
