"""Compare memory-efficient ways to train a 3D diffusion model: `python run_bench.py --help`."""

import sys

from bench.cli import run_bench

if __name__ == "__main__":
    sys.exit(run_bench())
