"""The phases of pruning by learned scores: which weights each phase trains, and a check that the others stay."""

import hashlib
import weakref
from typing import Any

import keras

from tf_robust_sparse import layers
from tf_robust_sparse.layers.kernel_seam import all_layers
from tf_robust_sparse.layers.signed import SignedKernel
from tf_robust_sparse.sparsity.prunable import report_frozen
from tf_robust_sparse.sparsity.scores import subnet_layers

TRAINS = {"pretrain": "kernels", "prune": "scores", "finetune": "kernels"}
FREEZE_BATCH_NORM = (False, True, "affine")
# Layers without a kernel -> the variables that a phase has frozen, as opposed to those that the user froze.
_held: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()


class Phase:
    """Decides which weights of a network with subnet kernels train.

    - pretrain: kernels and biases; with a `keep_fraction` below 1 under the mask of the current scores.
    - prune: scores of a trained network; kernels, biases and layers of other kinds are frozen.
    - finetune: kernels and biases; the scores, and with them the mask, are frozen.

    Batch norm trains in all of them, unless it is frozen in the prune phase. A frozen weight gets no gradient, no decay
    and no momentum, because the optimizer does not have it.

    Args:
        name: `"pretrain"`, `"prune"` or `"finetune"`.
        freeze_batch_norm: In the prune phase: `False` trains it, `True` runs it in inference mode with everything
            frozen, `"affine"` freezes scale and shift but updates the statistics, as HYDRA's code does.

    Raises:
        ValueError: if an argument is unknown, or batch norm is to be frozen in another phase.

    Reference: [Sehwag et al., 2020](https://arxiv.org/abs/2002.10509), section 3.
    """

    def __init__(self, name: str, freeze_batch_norm: bool | str = False) -> None:
        if name not in TRAINS:
            raise ValueError(f"`name` must be one of {', '.join(TRAINS)}. Received: name={name!r}")
        if freeze_batch_norm not in FREEZE_BATCH_NORM:
            raise ValueError(
                '`freeze_batch_norm` must be False, True or "affine". '
                f"Received: freeze_batch_norm={freeze_batch_norm!r}"
            )
        if freeze_batch_norm and name != "prune":
            raise ValueError(
                "`freeze_batch_norm` is for the prune phase only; the other phases train batch norm. "
                f"Received: name={name!r}, freeze_batch_norm={freeze_batch_norm!r}"
            )
        self.name = name
        self.freeze_batch_norm = freeze_batch_norm

    @property
    def trains(self) -> str:
        """`"kernels"` or `"scores"`."""
        return TRAINS[self.name]

    @property
    def needs_source(self) -> bool:
        """Whether the phase begins with the weights of another run."""
        return self.name != "pretrain"

    def begin(self, network: keras.Model) -> None:
        """Sets which weights of `network` train. Call it before you compile the model that trains it.

        Layers that the user froze stay frozen, and are named in the log.

        Raises:
            ValueError: if the network has no subnet kernel, or prunable kernels of another parametrization.
        """
        kernels = [layer for layer in layers.kernel_layers(network) if not layer.frozen]
        report_frozen(network)
        self._hold_others(network)
        if self.name == "pretrain" and not any(layer.prunable for layer in kernels):
            return  # a dense network: everything trains
        found = subnet_layers(network)
        for layer in kernels:
            of_kernel = self.trains == "kernels"
            if of_kernel and isinstance(layer, SignedKernel):
                raise ValueError(
                    f"The kernel of {layer.name} is always frozen, so the phase {self.name} has nothing to train; "
                    'copy the network to one with kernel="subnet". Received: '
                    f"{type(layer).__name__}"
                )
            for variable in layer.variables:
                if variable.dtype != "bool":  # signs are never trained
                    variable.trainable = of_kernel
            if layer in found:
                for variable in layer.selection:
                    variable.trainable = not of_kernel
        for layer in batch_norm_layers(network):
            layer.trainable = self.freeze_batch_norm is not True
            for variable in (layer.gamma, layer.beta):
                if variable is not None:
                    variable.trainable = not self.freeze_batch_norm

    def _hold_others(self, network: keras.Model) -> None:
        """Freezes layers that are neither kernels nor batch norm, or unfreezes what an earlier phase froze."""
        for layer in all_layers(network):
            if isinstance(layer, (layers.KernelLayer, keras.layers.BatchNormalization)):
                continue
            for variable in _held.pop(layer, []):
                variable.trainable = True
            if self.trains == "scores":
                _held[layer] = layer.trainable_variables
                for variable in _held[layer]:
                    variable.trainable = False

    def describe(self) -> dict[str, Any]:
        """Returns name and settings, ready for JSON."""
        return {"phase": self.name, "trains": self.trains, "freeze_batch_norm": self.freeze_batch_norm}


class PhaseCheck(keras.callbacks.Callback):
    """Checks after each epoch that exactly the weights that a phase trains have changed, bit by bit.

    Put it before the callback that writes checkpoints.

    Args:
        network: The network under training, after `Phase.begin`.

    Raises:
        RuntimeError: at the end of an epoch, if a frozen weight has changed, naming it, or if no weight has changed.
    """

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self._network = network

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers every weight by its digest."""
        self._trained = {variable.path for variable in self._network.trainable_variables}
        moving = {id(variable) for variable in _moving_statistics(self._network)}
        self._before = {
            variable.path: _digest(variable) for variable in self._network.variables if id(variable) not in moving
        }

    def on_epoch_end(self, epoch, logs=None):
        """Compares the digests."""
        changed = {
            variable.path
            for variable in self._network.variables
            if variable.path in self._before and _digest(variable) != self._before[variable.path]
        }
        stray = sorted(changed - self._trained)
        if stray:
            raise RuntimeError(f"Weights that are frozen in this phase have changed: {', '.join(stray)}")
        if not changed:
            raise RuntimeError(
                f"None of the {len(self._trained)} weights that train has changed in this epoch; the learning rate may "
                "be 0, or no gradient reaches them."
            )


def batch_norm_layers(network: keras.Model) -> list[Any]:
    """Returns the batch norm layers of `network`, nested models included."""
    return [layer for layer in all_layers(network) if isinstance(layer, keras.layers.BatchNormalization)]


def _moving_statistics(network: keras.Model) -> list[Any]:
    """Returns the variables that change without training: statistics of batch norm that is not frozen."""
    return [
        variable
        for layer in batch_norm_layers(network)
        if layer.trainable
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def _digest(variable: Any) -> bytes:
    return hashlib.sha256(keras.ops.convert_to_numpy(variable).tobytes()).digest()
