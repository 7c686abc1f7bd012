"""Packs a network into one small file, and unpacks such files."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import compact

if __name__ == "__main__":
    command_line.run(compact)
