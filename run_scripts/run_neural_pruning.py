"""Trains networks whose vulnerable channels are dropped: adversarial neural pruning."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import neural

if __name__ == "__main__":
    command_line.run(neural)
