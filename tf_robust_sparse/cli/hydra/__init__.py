"""HYDRA: what `trs hydra` is made of, and the words of its published code."""

from tf_robust_sparse.cli.hydra import directories, networks, originals, rates, settings, smoothing, trainers

__all__ = ["directories", "networks", "originals", "rates", "settings", "smoothing", "trainers"]
