"""Shows what the mask of a network is like: how much of each layer stays, and which weights."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import plot_masks

if __name__ == "__main__":
    command_line.run(plot_masks)
