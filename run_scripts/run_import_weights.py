"""Turns weights trained with the originals into a network and a SavedModel of this package."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import import_weights

if __name__ == "__main__":
    command_line.run(import_weights)
