"""Finds lottery tickets: rounds of training, pruning and rewinding, natural or under attack, in several trials."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import lottery

if __name__ == "__main__":
    command_line.run(lottery)
