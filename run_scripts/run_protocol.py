"""Trains and measures many methods under one protocol, and puts them into one table and one figure."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import protocol

if __name__ == "__main__":
    command_line.run(protocol)
