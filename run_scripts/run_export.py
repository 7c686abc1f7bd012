"""Writes a network in every form that other programs read, and compares size, speed, logits and accuracy."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import export

if __name__ == "__main__":
    command_line.run(export)
