"""Latencies of networks, measured in turns."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf


def median_latency(
    networks: Mapping[str, keras.Model], batch_size: int, seconds: float = 1.0, rounds: int = 5
) -> dict[str, float]:
    """Measures the time of one batch of random pixels for each network, compiled, in inference mode.

    The networks take turns, so that other work of the machine disturbs all of them alike.

    Args:
        networks: Name -> functional or sequential model of known image size.
        batch_size: Number of images, positive.
        seconds: Time of each network, without compilation and warm-up.
        rounds: Number of turns that this time is divided into.

    Returns:
        Name -> median over all calls, in seconds.

    Raises:
        ValueError: if a number is not positive.
    """
    for name, value in (("batch_size", batch_size), ("seconds", seconds), ("rounds", rounds)):
        if not value > 0:
            raise ValueError(f"`{name}` must be positive. Received: {name}={value!r}")
    calls = {}
    for name, network in networks.items():
        shape = (batch_size, *network.input_shape[1:])
        step = tf.function(
            lambda x, network=network: network(x, training=False), autograph=False
        ).get_concrete_function(tf.TensorSpec(shape, tf.float32))
        calls[name] = step, tf.random.stateless_uniform(shape, (0, 1))
    return median_durations({name: functools.partial(_take, *each) for name, each in calls.items()}, seconds, rounds)


def median_durations(calls: Mapping[str, Callable[[], Any]], seconds: float = 1.0, rounds: int = 5) -> dict[str, float]:
    """Measures the times of functions, which take turns.

    Args:
        calls: Name -> function of no arguments.
        seconds: Time of each function, without warm-up.
        rounds: Number of turns that this time is divided into.

    Returns:
        Name -> median over all calls, in seconds.
    """
    durations: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(2):
                call()
            end = time.perf_counter() + seconds / rounds
            while True:
                begin = time.perf_counter()
                call()
                durations[name].append(time.perf_counter() - begin)
                if time.perf_counter() > end:
                    break
    return {name: statistics.median(found) for name, found in durations.items()}


def _take(step: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> None:
    step(x).numpy()
