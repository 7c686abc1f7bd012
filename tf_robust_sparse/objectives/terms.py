"""Terms of a loss that objectives report for the log of a training step."""

import contextlib
import threading
from collections.abc import Iterator

import tensorflow as tf


class _Collector(threading.local):
    def __init__(self) -> None:
        self.found: dict[str, tf.Tensor] | None = None


_collector = _Collector()


@contextlib.contextmanager
def collected_terms() -> Iterator[dict[str, tf.Tensor]]:
    """Collects the terms that objectives report inside the block: name -> one number per example, or one number."""
    before, _collector.found = _collector.found, {}
    try:
        yield _collector.found
    finally:
        _collector.found = before


def report_term(name: str, value: tf.Tensor) -> None:
    """Reports the value of a term, if anything collects them.

    Args:
        name: One of the `terms` of the objective.
        value: `(batch,)` or a scalar.
    """
    if _collector.found is not None:
        _collector.found[name] = value
