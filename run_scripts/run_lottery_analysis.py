"""Turns lottery ticket experiments into curves, early stopping, weight densities and tables."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import plot_lottery

if __name__ == "__main__":
    command_line.run(plot_lottery)
