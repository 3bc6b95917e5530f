import os

# Tests run small tensors in several processes on few cores: threads would only wait on each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
