"""Binary sub-networks: what `trs binary` is made of."""

from tf_robust_sparse.cli.binary import attacks, network, originals, training, weights

__all__ = ["attacks", "network", "originals", "training", "weights"]
