"""Packs a trained and measured network with its model card, for others to load; uploads both if asked."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import publish

if __name__ == "__main__":
    command_line.run(publish)
