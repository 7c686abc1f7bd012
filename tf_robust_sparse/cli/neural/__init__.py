"""Adversarial neural pruning: what `trs neural` is made of."""

from tf_robust_sparse.cli.neural import objects, settings

__all__ = ["objects", "settings"]
