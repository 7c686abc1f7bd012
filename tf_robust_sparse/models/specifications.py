"""Networks defined by rows of a table: members of families that differ in depth and width."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras

from tf_robust_sparse.models.cnn import linear_logits, plain_resnet_logits
from tf_robust_sparse.models.network_builder import NetworkBuilder
from tf_robust_sparse.models.vgg import VGG_WIDTHS, vgg_logits
from tf_robust_sparse.models.wide_resnet import wide_resnet_logits


class Specification(NamedTuple):
    """A network of a family.

    Attributes:
        smallest: Smallest height and width of the images.
        logits: Adds all its layers to a builder and returns the logits.
    """

    smallest: int
    logits: Callable[[NetworkBuilder], keras.KerasTensor]


# All from HYDRA's code (Sehwag et al., 2020). Its `vgg16` is called `vgg16_without_bn` here, because `vgg16` here has
# batch norm. Its `lin_4` has three layers, like `lin_3`.
SPECIFICATIONS = {
    **{
        f"vgg{depth}_{suffix}": Specification(
            2 ** min(4, len(blocks)), functools.partial(vgg_logits, depth=depth, batch_norm=suffix == "bn")
        )
        for depth, blocks in VGG_WIDTHS.items()
        for suffix in ("bn", "without_bn")
    },
    "wrn28_1": Specification(4, functools.partial(wide_resnet_logits, depth=28, widening=1)),
    "wrn40_2": Specification(4, functools.partial(wide_resnet_logits, depth=40, widening=2)),
    "plain_resnet": Specification(4, functools.partial(plain_resnet_logits, blocks=5)),
    **{
        f"lin_{number}": Specification(1, functools.partial(linear_logits, depth=min(number, 3)))
        for number in range(1, 5)
    },
}


def build_specified(
    network: str,
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds a network of `SPECIFICATIONS`.

    Args: see `tf_robust_sparse.models.network_builder`, and
        network: A key of `SPECIFICATIONS`; the name of the network unless `name` is given.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    smallest, logits = SPECIFICATIONS[network]
    build = NetworkBuilder(
        network,
        smallest,
        num_classes,
        input_shape,
        kernel,
        connectivity,
        padding_mode,
        seed,
        synchronized_batch_norm,
    )
    return build.model(logits(build), name or network)
