"""Measures the robustness of a network under several attacks, and says how far the numbers can be trusted."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import evaluate

if __name__ == "__main__":
    command_line.run(evaluate)
