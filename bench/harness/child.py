"""The first thing that a worker's process runs, before anything that takes long to load.

    python -m bench.harness.child PARENT MODULE FD

From here on the process ends with its parent, also while it still imports PyTorch.
"""

import gc
import runpy
import sys

from .process import die_with_parent

if __name__ == "__main__":
    _, parent, module, *arguments = sys.argv
    die_with_parent(int(parent))
    gc.disable()  # until `serve`, or it would visit the million objects of modules over and over
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
