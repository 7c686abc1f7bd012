"""A sample of Fashion-MNIST that comes with the package, for tests and first runs without any download."""

from tf_robust_sparse.data.embedded.sample import load

__all__ = ["load"]
