"""Measures the robust accuracy of any SavedModel from pixels to logits with Foolbox's l-infinity PGD."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import foolbox

if __name__ == "__main__":
    command_line.run(foolbox)
