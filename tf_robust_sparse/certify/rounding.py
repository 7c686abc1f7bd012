"""Bounds of float32 rounding errors, which certificates subtract: of the network and of the bounds themselves.

A sum of n products of float32 numbers, in any order and with fused operations or not, differs from the real sum by at
most `gamma(n) * sum(|w| * |x|)`, where `gamma(n) = n * u / (1 - n * u)` and `u = 2**-24`
([Higham, 2002](https://doi.org/10.1137/1.9780898718027), section 3.1). So every layer of the network as it is evaluated
equals the layer in real numbers plus an unknown error of known size:

- Intervals of a layer's output are widened by this size, and by what rounding does to the two products that find them.
- A backward pass multiplies coefficients by a layer's outputs, so it subtracts the absolute coefficients times this
  size. Rounding of the coefficients has the same form: those before a layer are sums of products of those after it,
  and what the rounding of these sums can change is at most `gamma * |coefficients| |W| |x|`.

The sizes of inputs, `|x|`, are those that the intervals allow, so all of this holds for every image of the ball.
"""

import collections
import math
from typing import Any

import tensorflow as tf

from tf_robust_sparse.certify.ball import Interval
from tf_robust_sparse.certify.bound_graph import Input, Linear, MaxPool, ReLU, Step, Sum

UNIT = 2.0**-24
# Processors flush numbers below 2**-126 to 0. What this changes in coefficients is less than `TINY` in total, as long
# as connections times activations are below 2**60; what it changes in activations is less than `gamma(n) * _FLUSHED`.
TINY = 2.0**-64
_FLUSHED = 2.0**-100
# Further roundings of a linear map, counted as terms: batch norm or the one size of signs folded into kernels or not,
# reciprocals and square roots of hardware, kernels equal within 1e-6.
_FORMS = 32
_DECIDED = 2e-8  # a ReLU whose input is below -_DECIDED or at least 0 is passed without rounding


def gamma(terms: Any) -> Any:
    """Returns the relative error of a sum of so many products, and of computing this error: a number or a tensor."""
    return terms * UNIT / (1 - 3 * UNIT * terms)


def check_arithmetic() -> None:
    """Raises a `ValueError` if products are computed with fewer digits than float32 has."""
    if tf.config.list_logical_devices("GPU") and tf.config.experimental.tensor_float_32_execution_enabled():
        raise ValueError(
            "Certificates hold for float32, and this GPU multiplies in TF32; call "
            "tf.config.experimental.enable_tensor_float_32_execution(False) first"
        )


def with_pairs_of_readers(steps: list[Step]) -> list[Step]:
    """Returns the steps, with copies of outputs that more than two steps read, so that at most two read each.

    A backward pass adds the coefficients of all readers. The error of a sum of two is small where the sum is small;
    that of a longer sum need not be. A ReLU shares its input with no other step.
    """
    readers = _readers(steps)
    # Branch and bound changes the coefficients of a ReLU's input, which is an addition, too.
    own = [step for step in steps if isinstance(step.rule, ReLU) and readers[step.inputs[0]] > 1]
    for step in own:
        place = steps.index(step)
        before = Step(f"{step.name}/input", Sum(), step.inputs, step.shape)
        steps = [*steps[:place], before, step._replace(inputs=(before.name,)), *steps[place + 1 :]]
    readers = _readers(steps)
    sources: dict[str, list[str]] = {}  # what the readers of each output read, in order
    found: list[Step] = []
    for step in steps:
        found.append(step._replace(inputs=tuple(sources[name].pop(0) for name in step.inputs)))
        sources[step.name] = [step.name] * min(readers[step.name], 2)
        for number in range(readers[step.name] - 2):
            copy = f"{step.name}/copy{number}"
            found.append(Step(copy, Sum(), (sources[step.name][-1],), step.shape))
            sources[step.name][-1:] = [copy, copy]
    return found


class Rounding:
    """The rounding errors of the steps of one network over one ball.

    Attributes:
        errors: By the name of the step, the largest error of each output, `(batch, *shape)`, for backward passes: their
            own roundings at this step are included. `widened` fills it; steps that round nothing are left out.

    Args:
        steps: The network.
        errors: Errors that are known already.

    Raises:
        ValueError: if a layer has so many outputs that sums over them have no digit left.
    """

    def __init__(self, steps: list[Step], errors: dict[str, tf.Tensor] | None = None) -> None:
        most = max(math.prod(step.shape) for step in steps)
        if most * UNIT > 0.1:
            raise ValueError(
                f"Certificates in float32 hold for networks of up to {0.1 / UNIT:.2g} outputs per layer; use smaller "
                f"images. Received: {most} outputs"
            )
        self.errors = {} if errors is None else errors
        self._additions = 2 * len(steps) + 8  # of a backward pass to its total
        self._own = 1 + 4 * UNIT * (most + self._additions)  # the errors are computed in float32, too
        self._is_shared = {name for name, count in _readers(steps).items() if count > 1}
        self._is_shared |= {step.inputs[0] for step in steps if isinstance(step.rule, ReLU)}
        # The largest number of products of a kernel, by its name and those of a batch norm and a residual sum after it,
        # which it may take up: its sums begin or end with them then.
        self._products: dict[str, Any] = {}

    def widened(self, step: Step, inputs: list[Interval], bounds: Interval) -> Interval:
        """Returns an interval of the output of a step that holds for float32 too, and keeps the error of the step.

        Args:
            step: The step.
            inputs: Intervals of its inputs, which hold for float32.
            bounds: What interval arithmetic in float32 makes of them.
        """
        rule, sizes = step.rule, [_sizes(each) for each in inputs]
        taken_up = sum(self._products.get(name, 0.0) for name in step.inputs)
        if not isinstance(rule, (ReLU, MaxPool)):
            self._products[step.name] = taken_up
        widening, error = None, None
        if isinstance(rule, Input):
            error = gamma(self._additions) * bounds.upper
        elif isinstance(rule, Linear) and (rule.kernel is not None or rule.terms):
            bias = tf.zeros(()) if rule.bias is None else tf.abs(rule.bias)
            bias_size = bias if rule.bias_size is None else rule.bias_size
            products = rule.absolute(sizes[0]) + _FLUSHED
            forward, back = _terms(rule)
            if rule.kernel is None:
                network = gamma(forward + _FORMS) * products + gamma(taken_up + _FORMS) * bias_size
            else:
                self._products[step.name] = tf.reduce_max(forward)
                # Each addition rounds a sum of some of the terms. It lies between the sums of the negative and of the
                # positive ones, of which the larger is (products + |output|) / 2.
                products += bias_size
                network = gamma(forward + 1) * (products + _sizes(bounds)) / 2 + gamma(_FORMS) * products
            widening = self._own * (network + gamma(forward + 8) * (products + bias))
            error = network + gamma(back + 8) * products + gamma(step.shape[-1] + self._additions) * bias
        elif isinstance(rule, Sum) and len(inputs) > 1:
            widening = error = gamma(2 * len(inputs) + taken_up) * tf.add_n(sizes)
        elif isinstance(rule, ReLU):
            lower, upper = inputs[0]
            is_open = (lower < 0) & (upper > -_DECIDED)
            error = tf.where(is_open, gamma(16 + self._additions) * sizes[0], 0.0)
        elif isinstance(rule, MaxPool):
            most = tf.nn.max_pool2d(sizes[0], rule.window, rule.strides, "VALID")
            error = gamma(math.prod(rule.window) + self._additions) * most
        if widening is not None:
            bounds = Interval(bounds.lower - widening, bounds.upper + widening)
        if step.name in self._is_shared:  # its coefficients may be a sum of two
            shared = UNIT * _sizes(bounds)
            error = shared if error is None else error + shared
        if error is not None:
            self.errors[step.name] = self._own * error
        return bounds


def _readers(steps: list[Step]) -> collections.Counter[str]:
    return collections.Counter(name for step in steps for name in step.inputs)


def loss(coefficients: tf.Tensor, errors: tf.Tensor) -> tf.Tensor:
    """Returns what errors `(batch, ...)` can take from `coefficients` `(batch or 1, rows, ...)`: `(batch, rows)`."""
    neurons = math.prod(coefficients.shape[2:])
    sizes = tf.abs(tf.stop_gradient(coefficients))  # a direction in which to move slopes needs no rounding errors
    sizes = tf.reshape(sizes, (tf.shape(sizes)[0], -1, neurons))
    return tf.matmul(sizes, tf.reshape(errors, (-1, neurons, 1)))[:, :, 0]


def _terms(rule: Linear) -> tuple[Any, Any]:
    """Returns how many products each output sums, and at most how many outputs each input is part of."""
    if rule.kernel is None:
        return float(rule.terms), float(rule.terms)
    # Adding a product with a pruned connection, which is 0, is exact.
    connections = tf.cast(rule.kernel != 0, tf.float32)
    axes = list(range(len(rule.kernel.shape)))
    per_input = tf.reduce_max(tf.reduce_sum(connections, [axis for axis in axes if axis != axes[-2]]))
    if rule.window is not None:  # windows that lie `strides` apart
        taps = math.prod(-(-size // step) for size, step in zip(rule.window.size, rule.window.strides, strict=True))
        per_input = tf.minimum(per_input, float(taps * rule.kernel.shape[-1]))
    return tf.reduce_sum(connections, axes[:-1]), per_input


def _sizes(bounds: Interval) -> tf.Tensor:
    """Returns the largest absolute values in an interval."""
    return tf.maximum(tf.abs(bounds.lower), tf.abs(bounds.upper))
