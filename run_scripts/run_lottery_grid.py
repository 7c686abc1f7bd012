"""Runs the experiments of the lottery ticket paper one after the other, and then their analysis."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import lottery_grid

if __name__ == "__main__":
    command_line.run(lottery_grid)
