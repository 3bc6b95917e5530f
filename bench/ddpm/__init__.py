"""Denoising diffusion as the paper trains it.

diffusion.py  the cosine schedule; the forward process, eqs. (5) and (6); what is predicted of it
samplers.py   eq. (7) and the other samplers, under conditions and with guidance
step.py       the training step, eq. (8)
"""
