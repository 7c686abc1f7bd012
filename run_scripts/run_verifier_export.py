"""Prepares a network for complete verifiers: ONNX, a VNN-LIB property for each image, and the list of both."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import export_verifier

if __name__ == "__main__":
    command_line.run(export_verifier)
