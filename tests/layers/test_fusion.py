"""Compiled loops compute what the operations compute, wherever they are called."""

import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.layers import fusion
from tf_robust_sparse.layers.fusion import compile_elementwise


def step(x, gradient, low, high):
    return tf.clip_by_value(x + 0.1 * tf.sign(gradient), low, high), tf.where(gradient > 0, x, -x)


def arguments(batch=3):
    random = np.random.default_rng(0)
    x, gradient = (tf.constant(random.normal(size=(batch, 4, 5, 2)).astype("float32")) for _ in range(2))
    return x, gradient, x - 0.05, x + 0.05


def calls_compiled(function, *values):
    graph = tf.function(function, autograph=False).get_concrete_function(*values).graph
    calls = [op for op in graph.get_operations() if op.type in ("PartitionedCall", "StatefulPartitionedCall")]
    return any(op.get_attr("_XlaMustCompile") for op in calls)


@pytest.mark.parametrize("in_graph", [False, True])
def test_results_are_those_of_the_operations(in_graph):
    compiled = compile_elementwise(step)
    call = tf.function(compiled, autograph=False) if in_graph else compiled
    for batch in (3, 1):
        values = arguments(batch)
        for found, expected in zip(call(*values), step(*values), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-7)


def test_the_batch_may_be_of_unknown_size():
    specs = [tf.TensorSpec((None, 4, 5, 2))] * 4
    call = tf.function(compile_elementwise(step), input_signature=specs, autograph=False)
    for batch in (2, 7):
        np.testing.assert_allclose(call(*arguments(batch))[0], step(*arguments(batch))[0], atol=1e-7)
    assert call.experimental_get_tracing_count() == 1


def test_gradients_pass():
    x, gradient, low, high = arguments()

    def slope(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(function(x, gradient, low, high)[1] ** 3)
        return tape.gradient(total, x)

    np.testing.assert_allclose(slope(compile_elementwise(step)), slope(step), rtol=1e-6)


def test_gpus_and_a_tensorflow_without_xla_run_the_operations(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [kind])
    assert not fusion.compiles() and not calls_compiled(compile_elementwise(step), *arguments())
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [])
    assert fusion.compiles() and calls_compiled(compile_elementwise(step), *arguments())

    def broken(*args, jit_compile=False, **kwargs):
        raise tf.errors.UnimplementedError(None, None, "built without XLA")

    fusion._xla_works.cache_clear()
    with monkeypatch.context() as without_xla:
        without_xla.setattr(tf, "function", broken)
        assert not fusion.compiles()
    fusion._xla_works.cache_clear()
    assert fusion.compiles()
