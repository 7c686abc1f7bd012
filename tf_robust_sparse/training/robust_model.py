"""A Keras model that trains a network."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.attacks import GradientAttack, cross_entropy
from tf_robust_sparse.data.checks import checked_images, checked_in_graph, checked_labels, failures_in_one_line
from tf_robust_sparse.evaluation.softmax_head import ends_in_softmax
from tf_robust_sparse.layers.classifier import check_classifier
from tf_robust_sparse.layers.kernel_seam import inference_logits
from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.objectives import Objective
from tf_robust_sparse.sparsity import Sparsifier
from tf_robust_sparse.sparsity.integers import check_seed
from tf_robust_sparse.training.averages import Average, AverageOverEpochs
from tf_robust_sparse.training.collapse_guard import CollapseGuard
from tf_robust_sparse.training.masked_gradients import warn_of_masked_gradients
from tf_robust_sparse.training.slow_statistics import warn_of_slow_statistics
from tf_robust_sparse.training.step_data import at_least_one, images_and_labels
from tf_robust_sparse.training.training_step import TrainingStep

_VALIDATION = 1 << 30  # keeps seeds of validation attacks apart from those of attacks in training


class RobustModel(TrainingStep):
    """Trains `network` under `objective`; `sparsifier` decides its connections.

    Use it like any Keras model: `compile`, `fit`, `evaluate`, `predict`. The network stays an ordinary Keras model;
    save and export the network, not this model.

    ```python
    attack = trs.attacks.LinfPGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
    sparsifier = trs.sparsity.MagnitudePruning(connectivity=0.1)
    model = trs.RobustModel(network, trs.objectives.TRADES(attack), sparsifier, validation_attack=attack)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    model.fit(x, y, batch_size=128, epochs=10, validation_data=(x_val, y_val))
    ```

    A step computes effective kernels once. It finds adversarial inputs with batch norm in inference mode, folded into
    the kernels. It takes the loss with batch norm in training mode, averaged over the global batch. Then the optimizer
    updates the weights and the sparsifier the connections. All random draws are functions of `seed` and the number of
    the step, so a resumed run repeats the uninterrupted one.

    Args:
        network: `keras.Model` from images `(batch, height, width, channels)` in [0, 1] to logits `(batch, classes)`.
        objective: An `Objective` of `tf_robust_sparse.objectives`.
        sparsifier: A `Sparsifier` of `tf_robust_sparse.sparsity`, or `None`.
        validation_attack: An attack of `tf_robust_sparse.attacks`; `evaluate` and the validation of `fit` then also
            report `robust_accuracy`.
        seed: Integer in [0, 2**31).
        validation_checks: Name -> function of `(network, x, y, seed)` that returns whether each image passes, such as
            `{"verified_accuracy": certify.Verifier(2 / 255)}`; `evaluate` and the validation of `fit` report the
            shares of images that pass.
        shared_noise: Whether gates and dropout of this package use the same random draws for an image and its attacked
            version.
        log_terms: Whether training also logs the parts of its loss: `clean_loss` and `adversarial_loss`, the cross
            entropy of clean and of attacked images; `adversarial_accuracy`, if the objective computes both logits; and
            the `terms` of the objective, such as `vulnerability`.
        average: An average of the weights, such as `EMA(0.995)`, or `None`. With it `evaluate` and the validation of
            `fit` judge the averaged network; `model.average.load()` gives the network the averages for good.
        guard: A `CollapseGuard` for training by one step, or `None`.

    Raises:
        ValueError: if an argument is of the wrong kind or the network does not fit the sparsifier.
    """

    def __init__(
        self,
        network: keras.Model,
        objective: Objective,
        sparsifier: Sparsifier | None = None,
        validation_attack: GradientAttack | None = None,
        seed: int = 0,
        validation_checks: Mapping[str, Callable[..., tf.Tensor]] | None = None,
        shared_noise: bool = True,
        log_terms: bool = False,
        average: Average | None = None,
        guard: CollapseGuard | None = None,
    ) -> None:
        super().__init__()
        check_classifier(network)
        if ends_in_softmax(network):
            raise ValueError(
                "`network` must return logits, because the loss takes the softmax; pass "
                f"evaluation.without_softmax(network). Received: {network.name}, which ends in a softmax"
            )
        _check_kind("objective", objective, Objective, "an objective, such as tf_robust_sparse.objectives.Natural()")
        if sparsifier is not None:
            _check_kind("sparsifier", sparsifier, Sparsifier, "a sparsifier of tf_robust_sparse.sparsity, or None")
            sparsifier.attach(network)
            self._masks = sparsifier.masks  # so that checkpoints contain them
        if validation_attack is not None:
            _check_kind("validation_attack", validation_attack, GradientAttack, "an attack, or None")
        if average is not None:
            _check_kind("average", average, Average, "an average of tf_robust_sparse.training, such as EMA(), or None")
            average.attach(network, sparsifier)
            self._averages = average.holder  # a part of checkpoints
        if guard is not None:
            _check_kind("guard", guard, CollapseGuard, "a CollapseGuard of tf_robust_sparse.training, or None")
            self._guard_state = guard.state  # so are these
        self.guard = guard
        objective.attach(network)
        if objective.state is not None:
            self._objective_state = objective.state  # a part of checkpoints, too
        self.average = average
        self._epoch_of_average = None if average is None else AverageOverEpochs(average)
        self.network = network
        self.objective = objective
        self.sparsifier = sparsifier
        self.validation_attack = validation_attack
        self.seed = check_seed(seed)
        self.shared_noise = bool(shared_noise)
        self._robust_accuracy = (
            keras.metrics.SparseCategoricalAccuracy(name="robust_accuracy") if validation_attack else None
        )
        self.validation_checks = dict(validation_checks or {})
        self._checked = [keras.metrics.Mean(name=name) for name in self.validation_checks]
        self._watcher = sparsifier if sparsifier is not None and sparsifier.watches_validation else None
        if self._watcher is not None and validation_attack is None:
            raise ValueError(
                f"{type(sparsifier).__name__} needs robust accuracy in validation; pass validation_attack. "
                "Received: validation_attack=None"
            )
        self._robust_loss = keras.metrics.Mean(name="robust_loss") if self._watcher else None
        names = ("clean_loss", "adversarial_loss", "adversarial_accuracy", *objective.terms) if log_terms else ()
        names = names or (("adversarial_accuracy",) if self._watcher else ())
        names += (sparsifier.penalty_name,) if sparsifier is not None and sparsifier.penalty_name else ()
        self._terms = [keras.metrics.Mean(name=name) for name in names]
        self.build(network.input_shape)

    def build(self, input_shape):
        """Does nothing, because the network is built."""
        self.built = True

    def call(self, inputs, training=None):
        """Returns the logits of the network."""
        return self.network(inputs, training=training)

    def compile(self, optimizer: Any = "sgd", loss: Any = None, metrics: Any = None, **kwargs: Any) -> None:
        """Configures training.

        Args:
            optimizer: A Keras optimizer.
            loss: `None` or `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. The objective decides what
                training minimizes; this loss is only the cross entropy that validation reports.
            metrics: As in Keras, computed on the logits that the objective returns and the labels.
            **kwargs: As in Keras. `jit_compile` defaults to `False`, because random draws of a sparsifier have dynamic
                sizes, and XLA is slower for convolutions on CPUs.

        Raises:
            ValueError: if the loss is another one, the sparsifier refuses the optimizer, or XLA is to compile draws of
                dynamic size.
        """
        if loss is not None and not _is_cross_entropy_of_logits(loss):
            raise ValueError(
                "`loss` must be keras.losses.SparseCategoricalCrossentropy(from_logits=True) or None: the objective "
                f"decides what training minimizes. Received: loss={loss!r}"
            )
        kwargs.setdefault("jit_compile", False)
        if kwargs["jit_compile"] is True and self.sparsifier is not None and not self.sparsifier.compiles_with_xla:
            raise ValueError(
                f"{type(self.sparsifier).__name__} draws numbers of connections that XLA cannot compile; leave out "
                "jit_compile. Received: jit_compile=True"
            )
        super().compile(optimizer, loss=None, metrics=metrics, **kwargs)
        if self.sparsifier is not None:
            self.sparsifier.check_optimizer(self.optimizer)
        # Everything is built here: Keras would otherwise build from the first batch, which fails on several workers
        # (keras-team/keras issue 20585), and a checkpoint could not be loaded before training.
        with self.distribute_strategy.scope():
            self.optimizer.build(self.network.trainable_variables)
        if self.guard is not None:
            self.guard.attach(self)
        tf.function(self.distribute_strategy.run, autograph=False)(self._build_metrics)
        self.reset_metrics()

    def fit(self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Trains as `keras.Model.fit` does, and checks images and labels first.

        Arrays are checked completely before training. A data set is checked for types and shapes before training, and
        each batch when it comes, before a weight changes. `train_on_batch` and `test_on_batch` check too. The first
        batch of validation data is checked before training. Labels may be integers of any width, `(n,)` or `(n, 1)`.
        After training with a `validation_attack`, a warning says if gradients of many images are zero. Before training,
        one says if averages of batch norm are too slow for so few steps.

        Raises:
            ValueError: if images leave [0, 1], labels are out of range, shapes do not fit the network, there are
                weights of samples or classes, or a batch of known size does not divide evenly over the replicas.
        """
        for name in ("sample_weight", "class_weight"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"RobustModel trains without `{name}`; leave it out. Received: a {type(kwargs[name]).__name__}"
                )
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # a tf.data pipeline shuffles itself; Keras warns otherwise
        x, y, size = self._checked_data(x, y, batch_size)
        replicas = self.distribute_strategy.num_replicas_in_sync
        if size is not None and size % replicas:
            raise ValueError(
                f"The batch size must be a multiple of the number of replicas, {replicas}, because each takes an equal "
                f"part of a batch. Received: a batch of {size}"
            )
        warn_of_slow_statistics(self.network, x, size, kwargs)
        validation = kwargs.get("validation_data")
        if self._watcher is not None:
            if validation is None:
                raise ValueError(
                    f"{type(self._watcher).__name__} needs robust accuracy in validation; pass validation_data. "
                    "Received: validation_data=None"
                )
            freq = kwargs.get("validation_freq", 1)
            epochs = range(kwargs.get("initial_epoch", 0) + 1, kwargs.get("epochs", 1) + 1)
            if any(epoch % freq if isinstance(freq, int) else epoch not in freq for epoch in epochs):
                raise ValueError(
                    f"{type(self._watcher).__name__} needs robust accuracy in every epoch; leave validation_freq "
                    f"out. Received: validation_freq={freq}"
                )
        if self.sparsifier is not None:
            ended = keras.callbacks.LambdaCallback(on_epoch_end=self.sparsifier.end_epoch)
            kwargs["callbacks"] = [ended, *tf.nest.flatten(kwargs.get("callbacks") or [])]  # before states are written
        if self.guard is not None:
            kwargs["callbacks"] = [self.guard, *tf.nest.flatten(kwargs.get("callbacks") or [])]
        if self.objective.state is not None:
            ended = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: self.objective.end_epoch(epoch))
            kwargs["callbacks"] = [ended, *tf.nest.flatten(kwargs.get("callbacks") or [])]
        if self._epoch_of_average is not None:
            kwargs["callbacks"] = [self._epoch_of_average, *tf.nest.flatten(kwargs.get("callbacks") or [])]
        if isinstance(validation, (tuple, list)):
            images_and_labels(validation)
            kwargs["validation_data"] = self._checked_data(validation[0], validation[1])[:2]
        elif isinstance(validation, tf.data.Dataset):
            self._checked_data(validation)
            for batch in validation.take(1):  # Keras reads it only after each epoch
                self._batch(batch)
        with failures_in_one_line():
            history = super().fit(x, y, batch_size, **kwargs)
        if self.validation_attack is not None:
            warn_of_masked_gradients(self.network, kwargs.get("validation_data"))
        return history

    def evaluate(self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does, and checks images and labels first; see `fit`.

        Raises:
            ValueError: as `fit`.
        """
        if not kwargs.get("_use_cached_eval_dataset"):  # `fit` has checked its validation data
            x, y, _ = self._checked_data(x, y, batch_size)
        with failures_in_one_line(), self._evaluated_weights():
            return super().evaluate(x, y, batch_size, **kwargs)

    @contextlib.contextmanager
    def _evaluated_weights(self) -> Iterator[None]:
        if self.average is None or self._epoch_of_average is None:
            yield
            return
        self._epoch_of_average.finish()
        with self.average.in_network():
            yield

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Does one step as `keras.Model.train_on_batch` does; see `fit`."""
        return super().train_on_batch(*self._checked_data(x, y)[:2], *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates one batch as `keras.Model.test_on_batch` does; see `fit`."""
        return super().test_on_batch(*self._checked_data(x, y)[:2], *args, **kwargs)

    def test_step(self, data):
        """Reports loss and metrics of clean images, accuracy under the validation attack, and shares of the checks."""
        x, y = self._batch(data)
        (some_x, some_y), number = at_least_one(x, y), tf.shape(y)[0]
        seed = fold_in(tf.constant([self.seed, _VALIDATION]), 0)
        with layers.cached_kernels(self.network):
            with self._folded_kernels():
                logits = tf.cast(inference_logits(self.network, some_x), tf.float32)[:number]
                if self.validation_attack is not None:
                    x_adv = self.validation_attack(self.network, some_x, some_y, seed=seed)
                    logits_adv = inference_logits(self.network, x_adv)[:number]
                    self._robust_accuracy.update_state(y, logits_adv)
                    if self._robust_loss is not None:
                        self._robust_loss.update_state(cross_entropy(y, tf.cast(logits_adv, tf.float32)))
            for share, check in zip(self._checked, self.validation_checks.values(), strict=True):
                share.update_state(check(self.network, some_x, some_y, seed=seed)[:number])
        per_example = cross_entropy(y, logits)
        logs = self._update_metrics(per_example, x, y, logits)
        return {name: value for name, value in logs.items() if name not in [term.name for term in self._terms]}

    def predict_step(self, data):
        """Returns the logits of a batch of images."""
        x = data[0] if isinstance(data, (tuple, list)) else data
        (some_x,) = at_least_one(x)
        with layers.cached_kernels(self.network), self._folded_kernels():
            return inference_logits(self.network, some_x)[: tf.shape(x)[0]]

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns the results, over all replicas, of the metrics that the current phase has updated.

        `fit` and `evaluate` report them instead of the logs of one replica, if both have the same names.
        """
        results = super().get_metrics_result()
        if tf.inside_function():  # in a step, which drops the others itself
            return results
        sometimes = [*self._terms, *self._checked, self._robust_accuracy, self._robust_loss]
        idle = [
            metric.name for metric in sometimes if metric is not None and not float(tf.convert_to_tensor(metric.count))
        ]
        return {name: value for name, value in results.items() if name not in idle}

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Raises, because the network is what you save.

        Raises:
            ValueError: always, naming the functions to call instead.
        """
        raise ValueError(
            "A RobustModel cannot be saved; save its network with tf_robust_sparse.save_network(model.network, path), "
            "or a state to resume from with tf_robust_sparse.saving.save_checkpoint."
        )

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Does nothing, because `compile` has built everything.

        This is the only private method of Keras that is overridden. Keras' own averages the first batch over the
        replicas, which fails on several workers (keras-team/keras issue 20585) and for replicas with unequal parts.
        """

    def _update_metrics(self, per_example, x, y, logits):
        self._loss_metric.update_state(per_example)
        return {name: self._spread(value) for name, value in self.compute_metrics(x, y, logits).items()}

    def _spread(self, value):
        """Returns a number for the logs in the form that Keras expects.

        With several workers Keras averages logs over the first axis, which scalars do not have (keras-team/keras issue
        20585).
        """
        return tf.reshape(value, (1,)) if self._spans_workers else value

    @property
    def _loss_metric(self):
        return next(metric for metric in self.metrics if metric.name == "loss")

    @property
    def _spans_workers(self) -> bool:
        if not isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return False
        tasks = self.distribute_strategy.cluster_resolver.cluster_spec().as_dict()
        return len(tasks.get("chief", ())) + len(tasks.get("worker", ())) > 1

    def _build_metrics(self):
        y = tf.zeros((1,), tf.int64)
        logits = tf.zeros((1, self.network.output_shape[-1]))
        self.compute_metrics(logits, y, logits)

    def _batch(self, data):
        """Returns images, float32, and labels, int64; the step fails if they are out of range."""
        return checked_in_graph(*images_and_labels(data), self.network.input_shape[1:], self.network.output_shape[-1])

    def _checked_data(self, x: Any, y: Any = None, batch_size: int | None = None) -> tuple[Any, Any, int | None]:
        """Checks what can be checked now; returns the data for Keras, and the size of a batch if it is known."""
        if y is not None:
            x = checked_images(x, self.network.input_shape[1:])
            classes = self.network.output_shape[-1]
            y = checked_labels(y, len(x), classes, why=f", because the network has {classes} logits")
            return x, y, min(batch_size or 32, len(x))  # 32 is the default of Keras
        if isinstance(x, tf.data.Dataset):  # takes no batch, because the data set may be readable only once
            return x, None, self._checked_spec(x.element_spec)
        if x is None or isinstance(x, (np.ndarray, tf.Tensor, tuple, list, dict, str)):
            images_and_labels(x)  # Keras would take it for images without labels
        return x, None, None  # the step checks batches that come one by one

    def _checked_spec(self, spec: Any) -> int | None:
        """Traces the check of a step, and returns the size of a batch if all batches have the same size."""
        images_and_labels(spec)
        tf.function(lambda *batch: self._batch(batch), autograph=False).get_concrete_function(*spec)
        return spec[0].shape[0]


def _check_kind(name: str, value: Any, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"`{name}` must be {expected}. Received: {name}={value!r}")


def _is_cross_entropy_of_logits(loss: Any) -> bool:
    return isinstance(loss, keras.losses.SparseCategoricalCrossentropy) and loss.get_config()["from_logits"]
