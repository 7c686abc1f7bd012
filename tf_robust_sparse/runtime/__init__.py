"""Sparse networks that run fast on CPUs without TensorFlow."""

from tf_robust_sparse.runtime.compiled import CompiledNetwork, LoadedNetwork, compile, load

__all__ = ["CompiledNetwork", "LoadedNetwork", "compile", "load"]
