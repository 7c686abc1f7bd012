"""Whether a network runs faster on the engine than on TensorFlow, estimated from its shape.

The estimate depends on the network, the batch and the number of threads alone, so that a resumed run computes as
before. Its constants were fitted to whole networks on x86-64 with AVX-512; `python -m benchmarks.never_worse --forced`
shows how far it can be trusted. All times are in microseconds.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tf_robust_sparse.engine.matrices import BLOCKED_FROM
from tf_robust_sparse.engine.nodes import Node

_MARGIN = 0.85  # of TensorFlow's time, so that an estimate that is a little off makes nothing slower
_LISTED, _BLOCKED, _BLOCKED_SMALL = 25e3, 50e3, 25e3  # multiplications per microsecond of one thread
_SMALL = 2_000_000  # multiplications of a layer
_TENSORFLOW = 50e3
_CALL, _PACKED = 200.0, 1000.0  # of leaving the graph for a pass, and to pack
_MOST_WAITING = 1500.0  # for TensorFlow's threads, which keep a core for a while after their work
_CONVOLUTION, _DENSE = 80.0, 10.0  # of TensorFlow's operations for one layer, whatever its size
_VALUE, _VALUE_OF_TENSORFLOW = 0.5e-3, 3e-3  # of each value of a feature map: load, bias, activation, pooling, store
_LISTED_WEIGHT, _BLOCKED_WEIGHT, _WEIGHT_OF_TENSORFLOW = 2e-3, 7e-3, 0.5e-3
_CACHED_WEIGHTS = 1e6  # of a network, which TensorFlow does not read from memory in each pass


@dataclasses.dataclass
class Costs:
    """What one pass through a network takes in one direction, with and without the engine.

    Attributes:
        lane: The engine's time for one of the images that lie side by side.
        image: TensorFlow's time for one image of many, on one thread.
        batch: TensorFlow's time that does not depend on the number of images.
        packing: The engine's time to read the weights.
    """

    lane: float
    image: float
    batch: float
    packing: float

    def is_faster(self, batch: int, lanes: int, threads: int, repeated: bool) -> bool:
        """Returns whether the engine is faster.

        Args:
            batch: Images of a pass.
            lanes: Images that one thread computes side by side.
            threads: Number of threads.
            repeated: Whether there are many passes, forward and backward, for which the weights are read once; else
                there is one, forward.
        """
        work = -(-batch // (lanes * threads)) * lanes * self.lane
        waiting = min(work / 2, _MOST_WAITING) if threads > 1 and batch > lanes else 0
        engine = _CALL + work + waiting
        tensorflow = self.batch + batch * self.image / threads
        return engine + (0 if repeated else self.packing) <= _MARGIN * tensorflow


def costs(nodes: Sequence[Node], connectivity: Mapping[str, float]) -> Costs:
    """Returns the costs of a network.

    Args:
        nodes: See `engine.nodes`.
        connectivity: The fraction of its connections that each convolution is expected to have, by name.
    """
    channels = {node.name: node.shape[2] for node in nodes}
    found = Costs(0.0, 0.0, 0.0, _PACKED)
    for node in nodes:
        if node.kind not in ("identity", "pad", "affine"):
            values, is_map = int(np.prod(node.shape)), node.shape[:2] != (1, 1)
            found.lane += values * _VALUE * (2 if node.activation.is_smooth else 1)  # a pass of its own
            found.image += values * _VALUE_OF_TENSORFLOW if is_map else 0
    weights = 0
    for node in nodes:
        if node.kind != "convolution":
            continue
        size = int(np.prod(node.window)) * channels[node.inputs[0]] // node.groups * node.shape[2]
        positions = node.shape[0] * node.shape[1]
        is_blocked = connectivity[node.name] >= BLOCKED_FROM and node.groups == 1
        rate = (_BLOCKED_SMALL if size * positions < _SMALL else _BLOCKED) if is_blocked else _LISTED
        found.lane += size * positions * (1 if is_blocked else connectivity[node.name]) / rate
        found.image += size * positions / _TENSORFLOW
        found.batch += _CONVOLUTION if positions > 1 or node.window != (1, 1) else _DENSE
        found.packing += size * (_BLOCKED_WEIGHT if is_blocked else _LISTED_WEIGHT)
        weights += size
    found.batch += max(0.0, weights - _CACHED_WEIGHTS) * _WEIGHT_OF_TENSORFLOW
    return found
