"""Settings every test sees: two logical CPUs, one seed, no legacy Keras."""

import os
import random

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


# Here TensorFlow's graph optimizer, which takes a fifth of the time of a short training, is off. The other folders, which
# look at the numbers of each method, leave it on, and so do programs that tests start.
PLAIN_GRAPHS = {"models", "run_scripts", "saving", "training"}


@pytest.fixture(scope="module", autouse=True)
def _graph_optimizer(request):
    off = request.path.parent.name in PLAIN_GRAPHS
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": off})


def _seed_without_forgetting(seed):
    """Does what `tf.random.set_seed` does, but keeps all compiled functions."""
    context.context()._seed, context.context()._rng = seed, random.Random(seed)


@pytest.fixture(scope="module", autouse=True)
def _forgetful():
    """TensorFlow forgets what it has compiled for another file, and how far its generators were."""
    tf.random.set_seed(0)


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    """All seeds. What a test has compiled stays so: `tf.random.set_seed` would have it compiled again in the next."""
    with monkeypatch.context() as patched:
        patched.setattr(tf.random, "set_seed", _seed_without_forgetting)
        keras.utils.set_random_seed(0)
