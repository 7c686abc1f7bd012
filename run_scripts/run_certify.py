"""Certifies a network: the share of test images whose class no perturbation within a radius can change."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import certify

if __name__ == "__main__":
    command_line.run(certify)
