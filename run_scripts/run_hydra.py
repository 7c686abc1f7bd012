"""Prunes a network by scores learned under a robust objective: pretrain, prune, finetune (HYDRA)."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import hydra

if __name__ == "__main__":
    command_line.run(hydra)
