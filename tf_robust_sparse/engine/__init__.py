"""An engine that computes sparse networks on CPUs, from NumPy arrays to NumPy arrays; it knows nothing of Keras."""
