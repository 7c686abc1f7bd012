"""Sparse networks that run fast on CPUs without TensorFlow."""

from tf_robust_sparse.runtime.compiled import CompiledNetwork, compile, load

__all__ = ["CompiledNetwork", "compile", "load"]
