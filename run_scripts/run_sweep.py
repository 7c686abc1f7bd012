"""Runs a training script once per value of a flag and per seed, and gathers accuracies: robustness against sparsity."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import sweep

if __name__ == "__main__":
    command_line.run(sweep)
