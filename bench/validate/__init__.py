"""Prediction beside measurement on this device, method by method.

validating.py     the command `validate`
plan.py           one method, one device
measured.py       the process that measures it
allocator_log.py  what CUDA's caching allocator tells of itself, and its replay through ours
cooling.py        how the card heats and cools
agreement.py      where two sequences of allocations part
"""
