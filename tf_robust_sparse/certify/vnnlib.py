"""Local robustness as a VNN-LIB property, which complete verifiers read together with the network as ONNX.

Reference: the [VNN-LIB standard](https://www.vnnlib.org), as the verification competition VNN-COMP uses it.
"""

from decimal import Decimal

import numpy as np
import tensorflow as tf

from tf_robust_sparse.certify.ball import above, outward
from tf_robust_sparse.data.checks import checked_images


def vnnlib_property(x: np.ndarray, label: int, epsilon: float, classes: int, comment: str = "") -> str:
    """Returns the property that some image of the l-infinity ball around `x` is not given the class `label`.

    A verifier searches for such an image: "unsat" means that the image is verified, "sat" comes with an adversarial
    example. The input variables `X_i` are pixels in the order of `export_verifier_onnx`, channels first; the outputs
    `Y_j` are logits. The bounds are float32 numbers, rounded outward and written with all digits. So the box contains
    the whole ball within [0, 1], in real numbers and in float32, and every point that an attack in float32 finds in it.

    Args:
        x: `(height, width, channels)` or `(features,)`, float32, in [0, 1].
        label: The class.
        epsilon: Radius in pixels of [0, 1], above 0 and below 1.
        classes: Number of logits, above `label`.
        comment: Text of the first lines.

    Raises:
        ValueError: if an argument is out of its range.
    """
    x = checked_images(np.asarray(x)[np.newaxis])[0].astype(np.float32)
    if x.ndim not in (1, 3):
        raise ValueError(f"`x` is one image (height, width, channels) or vector of pixels. Received: shape {x.shape}")
    if not 0 < epsilon < 1:
        raise ValueError(f"`epsilon` is a radius in pixels of [0, 1], above 0 and below 1. Received: epsilon={epsilon}")
    if not 0 <= label < classes or classes < 2:
        raise ValueError(
            f"`label` is in [0, classes), and there are at least 2. Received: label={label}, classes={classes}"
        )
    pixels = (x if x.ndim == 1 else x.transpose(2, 0, 1)).ravel()
    lower, upper = (side.numpy() for side in outward(tf.constant(pixels), above(epsilon)))
    lines = [f"; {line}" for line in comment.splitlines()]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(pixels))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    for i, (least, most) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {_decimal(least)}))", f"(assert (<= X_{i} {_decimal(most)}))"]
    others = "\n".join(f"    (and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label)
    return "\n".join([*lines, f"(assert (or\n{others}\n))"]) + "\n"


def _decimal(value: np.float32) -> str:
    """Returns all digits of a number, because the grammar has no exponents."""
    text = format(Decimal(float(value)), "f")
    return text if "." in text else f"{text}.0"
