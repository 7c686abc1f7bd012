"""`trs.sparsify`: makes any built Keras 3 model sparse by the chosen method."""

import logging
import math
from typing import NamedTuple

import keras

from tf_robust_sparse.sparsity.allocation import check_connectivity
from tf_robust_sparse.sparsity.magnitude import MagnitudePruning
from tf_robust_sparse.sparsity.mask_sparsifier import MaskSparsifier
from tf_robust_sparse.sparsity.prunable import Filters, Prunable, Skipped, find_kernels, kernel_variables

_log = logging.getLogger(__name__)


class SparsifyReport(NamedTuple):
    """What `trs.sparsify` did.

    Attributes:
        sparsifier: The sparsifier to train with: `trs.RobustModel(model, objective, report.sparsifier)`.
        sparsified: The kernels that are pruned.
        skipped: The other kernels, each with the reason.
    """

    sparsifier: MaskSparsifier
    sparsified: list[Prunable]
    skipped: list[Skipped]

    @property
    def connectivity(self) -> float:
        """Fraction of the entries of the sparsified kernels that are connected at present."""
        return sum(self.sparsifier.count()) / sum(self.sparsifier.sizes)

    def __str__(self) -> str:
        rows = [
            f"{kernel.name}: {count} of {kernel.size} entries"
            for kernel, count in zip(self.sparsified, self.sparsifier.count(), strict=True)
        ]
        rows += [f"{name}: dense, {reason}" for name, reason in self.skipped]
        size = sum(self.sparsifier.sizes)
        names, kernels = {kernel.name for kernel in self.sparsified}, kernel_variables(self.sparsifier.network)
        dense = sum(math.prod(kernel.shape) for name, kernel in kernels if name not in names)
        total = f"in all {100 * self.connectivity:.2f} % of {size} entries"
        if dense:  # as reports of evaluations count
            share = (sum(self.sparsifier.count()) + dense) / (size + dense)
            total += f"; with {dense} in kernels that stay dense, {100 * share:.2f} % of {size + dense}"
        return "\n".join([*rows, total])


def sparsify(
    model: keras.Model,
    connectivity: float | None = None,
    sparsifier: MaskSparsifier | None = None,
    filters: Filters | None = None,
    min_size: int = 256,
    depthwise: bool = False,
    embeddings: bool = False,
) -> SparsifyReport:
    """Makes a built Keras model sparse, to be trained with `trs.RobustModel`.

    The layers of the model stay the same. The sparsifier holds the masks and keeps pruned weights at exactly 0, so
    `model.save`, `model.export` and quantization need nothing of this package.

    ```python
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
    )
    report = trs.sparsify(model, connectivity=0.1)
    trainer = trs.RobustModel(model, trs.objectives.Natural(), report.sparsifier)
    trainer.compile("adam")
    trainer.fit(x, y, epochs=20)
    model.save("sparse.keras")
    ```

    Args:
        model: Any built Keras 3 model; in a strategy's scope if it was made in one.
        connectivity: Fraction of the entries of the sparsified kernels that stays, in (0, 1]; `None` takes that of the
            sparsifier.
        sparsifier: The method: `MagnitudePruning()` at once (the default) or gradually, `SET()`, `RigL()`, `NM()`, ...;
            its connectivity may be `None`.
        filters: Which variables to prune: a regular expression or a list of them, searched for anywhere in the path of
            the variable, or a function of the path. By default, variables whose names are those of kernels.
        min_size: Tensors with fewer entries stay dense.
        depthwise: Whether kernels of depthwise convolutions are pruned.
        embeddings: Whether embeddings are pruned.

    Returns:
        The report, with the sparsifier bound to the model.

    Raises:
        ValueError: if the model is not built, nothing can be pruned, a filter matches nothing, layers are quantized or
            have LoRA weights, the connectivity is out of range or differs from that of the sparsifier, or the method
            cannot prune a kernel that `filters` names. The model is then unchanged.

    Reference: [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878) for magnitude pruning.
    """
    sparsifier = MagnitudePruning() if sparsifier is None else sparsifier
    if not isinstance(sparsifier, MaskSparsifier):
        raise ValueError(
            "`sparsifier` must hold masks, as MagnitudePruning, SET and RigL do; ConnectivitySampling works on "
            "trs.models.from_keras(model, kernel='rewiring', connectivity=...). "
            f"Received: sparsifier={sparsifier!r}"
        )
    connectivity = check_connectivity(sparsifier.connectivity if connectivity is None else connectivity)
    if sparsifier.connectivity not in (None, connectivity):
        raise ValueError(
            "Pass the connectivity once, to trs.sparsify or to the sparsifier (NM(n, m) has n / m). Received: "
            f"connectivity={connectivity} in trs.sparsify and {sparsifier.connectivity} in the sparsifier"
        )
    if sparsifier.network is not None:
        raise ValueError(
            f"`sparsifier` belongs to {sparsifier.network.name} already; make a new {type(sparsifier).__name__}. "
            f"Received: {model.name}"
        )
    inputs = len(keras.tree.flatten(getattr(model, "inputs", None)))
    if inputs > 1:
        _log.warning(
            "%s has %d inputs. It is made sparse, but RobustModel trains only models with one input, the images.",
            model.name,
            inputs,
        )
    found, skipped = find_kernels(model, filters, min_size, depthwise, embeddings)
    found, misfits = sparsifier.fitting(found)
    if misfits and filters is not None:
        raise ValueError(
            f"{type(sparsifier).__name__} cannot prune {misfits[0].name}: {misfits[0].reason}; leave it out of "
            f"`filters`. Received: filters={filters!r}"
        )
    skipped += misfits
    size = sum(each.size for each in found)
    if int(size * connectivity) < len(found):
        raise ValueError(
            f"`connectivity` must leave an entry in each of the {len(found)} kernels, {size} entries in all; pass at "
            f"least {len(found) / size:.2g}. Received: connectivity={connectivity}"
        )
    before = sparsifier.connectivity
    sparsifier.connectivity = connectivity
    try:
        sparsifier.bind(model, found)
    except ValueError:
        sparsifier.connectivity, sparsifier.network, sparsifier.masks = before, None, None
        raise
    return SparsifyReport(sparsifier, sparsifier.kernels, skipped)
