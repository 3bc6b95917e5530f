"""A stand-in `libnvidia-ml.so.1`, which plays scripted cards to the real `pynvml`."""
