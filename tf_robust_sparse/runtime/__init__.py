"""Sparse networks that run fast on CPUs without TensorFlow."""

from tf_robust_sparse.runtime.compiled import compile, load

__all__ = ["compile", "load"]
