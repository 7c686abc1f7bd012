"""Settings every test sees: two logical CPUs, one seed, no legacy Keras."""

import gc
import os
import random

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of NumPy, whose threads would wait for each other in a busy loop
if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: more threads would only wait for each other
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config):
    """Imports TensorFlow and sets it up, but not in the process that only hands out tests to others."""
    if config.getoption("numprocesses", None):
        return
    gc.disable()  # nothing that imports and collection make is thrown away
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )


def pytest_collection_finish():
    """Has the garbage collector look only at what the tests make, and less often than by default."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="module", autouse=True)
def _forgetful():
    """TensorFlow forgets what it has compiled for another file, and how far its generators were."""
    import tensorflow as tf

    tf.random.set_seed(0)


def _seed_without_forgetting(seed):
    """Does what `tf.random.set_seed` does, but keeps all compiled functions."""
    from tensorflow.python.eager import context

    context.context()._seed, context.context()._rng = seed, random.Random(seed)


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    """All seeds. What a test has compiled stays so: `tf.random.set_seed` would have it compiled again in the next."""
    import keras
    import tensorflow as tf

    with monkeypatch.context() as patched:
        patched.setattr(tf.random, "set_seed", _seed_without_forgetting)
        keras.utils.set_random_seed(0)
