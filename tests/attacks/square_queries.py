"""What Square attack asks a network, one query after the other."""

import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.forward import inference_forward

LINF_ROUNDING = 1e-6  # of x + epsilon, pixels in [0, 1]
SUM_ROUNDING = 1e-4  # of some hundred pixels summed up


def distance(x_adv, x, norm):
    delta = np.abs(np.asarray(x_adv, np.float64) - x).reshape(len(x), -1)
    return np.linalg.norm(delta, ord={"Linf": np.inf, "L2": 2, "L1": 1}[norm], axis=1)


def seeds_of(images, seed=0):
    return tf.stack([tf.range(images, dtype=tf.int64), tf.fill([images], tf.constant(seed, tf.int64))], axis=1)


def runner(attack, network, shape):
    """A function that gives the states of one run at the iterations of `until`, from graphs for any batch size."""
    forward = inference_forward(network)
    epsilon = tf.constant(attack.epsilon)
    images, labels = tf.TensorSpec((None, *shape)), tf.TensorSpec((None,), tf.int64)

    @tf.function(input_signature=[images, labels, tf.TensorSpec((None, 2), tf.int64)], autograph=False)
    def start(x, y, seeds):
        return attack.start(forward, x, y, seeds, y, epsilon)

    outputs = start.get_concrete_function().structured_outputs
    state_specs = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in outputs.items()}

    @tf.function(input_signature=[images, labels, state_specs, tf.TensorSpec((), tf.int32)], autograph=False)
    def advance(x, y, state, until):
        return attack.advance(forward, x, y, state, until, epsilon)

    def run(x, y, seeds=None, until=None):
        states = [start(x, y, seeds_of(len(x)) if seeds is None else seeds)]
        for stop in until or [attack.num_queries]:
            states.append(advance(x, y, states[-1], stop))
        return states

    return run
