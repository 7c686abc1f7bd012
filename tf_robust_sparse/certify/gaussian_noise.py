"""Gaussian noise as a function of a key and a position, in a few vector instructions per number on a CPU.

Randomized smoothing spends as much time on its noise as on a small network. TensorFlow's `stateless_normal` takes three
times as long as this module, because its generator works number by number.
"""

import math

import tensorflow as tf

from tf_robust_sparse.layers.fusion import compile_elementwise, compiles

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_SQRT_HALF_BITS = 0x3F3504F3
# Minimax polynomials of the Cephes library: log(1 + m) on [sqrt(1/2), sqrt(2)], sine and cosine on [-pi/4, pi/4].
_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1),
    *(2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def noisy_copies(x: tf.Tensor, number: int, key: tf.Tensor, block: tf.Tensor, deviation: float) -> tf.Tensor:
    """Returns copies of an image with Gaussian noise added.

    Args:
        x: `(height, width, channels)`, float32.
        number: Number of copies, at least 1.
        key: `(2,)`, uint32; selects the noise.
        block: Scalar, int32; blocks of one key are independent.
        deviation: Standard deviation of the noise.

    Returns:
        `(number, height, width, channels)`, float32.

    References: [Salmon et al., 2011](https://doi.org/10.1145/2063384.2063405), Threefry-2x32 with 20 rounds;
    [Box and Muller, 1958](https://doi.org/10.1214/aoms/1177706645). The radius has 31 bits, so values reach 6.6
    standard deviations.
    """
    if not compiles():  # on GPUs TensorFlow's generator is faster
        seed = tf.random.experimental.stateless_fold_in(tf.cast(key, tf.int64), tf.cast(block, tf.int64))
        return x + tf.random.stateless_normal((number, *x.shape), seed, stddev=deviation)
    shape = ((number + 1) // 2, *x.shape)
    halves = _noisy_halves(x, key, tf.bitcast(block, tf.uint32), tf.constant(deviation), shape)
    return tf.concat(halves, 0)[:number]


@compile_elementwise
def _noisy_halves(
    x: tf.Tensor, key: tf.Tensor, block: tf.Tensor, deviation: tf.Tensor, shape: tuple[int, ...]
) -> tuple[tf.Tensor, tf.Tensor]:
    # Two results instead of one of twice the size: for a concatenation XLA would draw everything twice.
    counters = tf.bitcast(tf.range(math.prod(shape)), tf.uint32)
    first, second = gaussian_pairs(*threefry(key, counters, tf.fill(tf.shape(counters), block)))
    return x + deviation * tf.reshape(first, shape), x + deviation * tf.reshape(second, shape)


def threefry(key: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns two words of 32 random bits, of the shape of `x`, for each counter `(x, y)`; all are uint32.

    Args:
        key: `(2,)`.
        x: First word of each counter, of any shape.
        y: Second word, of the same shape.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ tf.constant(_PARITY, tf.uint32))
    x, y = x + keys[0], y + keys[1]
    for turn in range(20):
        rotation = _ROTATIONS[turn % 8]
        x += y
        y = x ^ (_left(y, rotation) | _right(y, 32 - rotation))
        if turn % 4 == 3:
            group = turn // 4 + 1
            x += keys[group % 3]
            y += keys[(group + 1) % 3] + tf.constant(group, tf.uint32)
    return x, y


def gaussian_pairs(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns two independent standard normal numbers for each pair of words of 32 random bits.

    Box and Muller's radius comes from `a`, the angle from `b`. The polynomials replace XLA's logarithm, sine and
    cosine, which are not vectorized. They are exact to a few units in the last place.
    """
    radius = tf.sqrt(-2.0 * _log_uniform(tf.bitcast(_right(a, 1), tf.int32)))
    # 30 bits give an angle within an eighth of the circle to either side; the other two bits give the quarter.
    angle = tf.cast(tf.bitwise.right_shift(tf.bitcast(_left(b, 2), tf.int32), 2), tf.float32) * (math.pi * 2.0**-31)
    square = angle * angle
    sine = angle + angle * square * _polynomial(_SINE, square)
    cosine = 1.0 - 0.5 * square + square * square * _polynomial(_COSINE, square)
    radius = tf.where(_right(b, 31) > 0, -radius, radius)
    turned = (_right(b, 30) & tf.constant(1, tf.uint32)) > 0
    return radius * tf.where(turned, sine, cosine), radius * tf.where(turned, -cosine, sine)


def _log_uniform(bits: tf.Tensor) -> tf.Tensor:
    """Returns the logarithm of `(bits + 1/2) / 2**31`, for int32 of 31 bits."""
    value = tf.bitcast(tf.cast(bits, tf.float32) + 0.5, tf.int32) - _SQRT_HALF_BITS
    exponent = tf.cast(tf.bitwise.right_shift(value, 23), tf.float32)
    m = tf.bitcast((value & 0x007FFFFF) + _SQRT_HALF_BITS, tf.float32) - 1.0
    square = m * m
    log = m + (m * square * _polynomial(_LOG, m) - 0.5 * square)
    return log + (exponent - 31.0) * math.log(2.0)


def _polynomial(coefficients: tuple[float, ...], x: tf.Tensor) -> tf.Tensor:
    value = coefficients[0] * tf.ones_like(x)
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def _left(x: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.left_shift(x, tf.constant(bits, tf.uint32))


def _right(x: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(x, tf.constant(bits, tf.uint32))
