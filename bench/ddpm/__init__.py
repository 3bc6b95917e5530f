"""Denoising diffusion as the paper trains it.

diffusion.py  the cosine schedule and the forward process, eqs. (5) and (6)
samplers.py   eq. (7) and the other samplers
step.py       the training step, eq. (8)
"""
