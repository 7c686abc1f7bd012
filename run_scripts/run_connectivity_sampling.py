"""Trains a robust network that is sparse from the first step to the last, or its dense twin."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import train

if __name__ == "__main__":
    command_line.run(train)
