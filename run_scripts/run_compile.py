"""Makes a program of a sparse network that needs no TensorFlow, and measures how fast it is."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import compile_network

if __name__ == "__main__":
    command_line.run(compile_network)
