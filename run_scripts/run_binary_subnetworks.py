"""Finds a robust network of signs inside a random one: scores are learned, the weights never change."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import binary

if __name__ == "__main__":
    command_line.run(binary)
