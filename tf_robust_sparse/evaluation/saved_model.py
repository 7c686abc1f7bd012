"""SavedModel directories as callables from images to logits."""

import copy
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.kinds import way_in


class SavedModelClassifier:
    """A loaded SavedModel, called with images and returning logits.

    It keeps the loaded object: `tf.saved_model.load(path).serve` alone fails at its first call, because the variables
    have been deleted by then.

    Args:
        loaded: Result of `tf.saved_model.load`.
        path: Its directory, for messages.

    Attributes:
        path: As given.
        input_shape: `(batch, ...)` with `None` for variable sizes, or `None` if the SavedModel does not say.
        num_classes: Number of logits, or `None` if the SavedModel does not say.
        variables: Its weights, in order; empty if they are constants of the graph.
        pixel_range: Factor that images are multiplied by, 1 by default; see `with_pixel_range`.

    Raises:
        ValueError: if it cannot be called with one tensor of images.
    """

    def __init__(self, loaded: Any, path: str | Path) -> None:
        self.path = str(path)
        self.pixel_range = 1.0
        self._loaded = loaded
        signature = getattr(loaded, "signatures", {}).get("serving_default")
        images = _only(signature.structured_input_signature[1], self.path, "input") if signature else None
        logits = _only(signature.structured_outputs, self.path, "output") if signature else None
        self.input_shape = _shape(images)
        self.num_classes = None if _shape(logits) is None else _shape(logits)[-1]  # type: ignore[index]
        self.variables = list(getattr(loaded, "variables", None) or (signature.variables if signature else ()))
        self._dtype = tf.float32 if images is None else images.dtype
        if not self._dtype.is_floating:
            raise ValueError(
                "The SavedModel must take floating images in [0, 1], because an attack needs their gradient; export it "
                f"without the step that decodes {self._dtype.name} images. Received: {self.path}"
            )
        if callable(getattr(loaded, "serve", None)):
            self._forward = inference_forward(loaded.serve)
        elif signature is not None:
            name = next(iter(signature.structured_input_signature[1]))
            self._forward = inference_forward(lambda x: signature(**{name: x}))
        elif callable(loaded):
            self._forward = inference_forward(loaded)
        else:
            raise ValueError(
                "The SavedModel has no `serve`, no signature `serving_default` and cannot be called; export it with "
                f"keras.Model.export. Received: {self.path}"
            )

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the logits of images.

        Args:
            x: `(batch, ...)`, floating, in `[0, 1]`.

        Returns:
            `(batch, classes)`, float32.

        Raises:
            ValueError: if the SavedModel takes images of another shape.
        """
        x = tf.cast(x, self._dtype)
        if self.input_shape is not None and not x.shape.is_compatible_with((None, *self.input_shape[1:])):
            raise ValueError(
                f"The SavedModel takes images of shape {self.input_shape}. Received: images of shape {tuple(x.shape)}"
            )
        return self._forward(x if self.pixel_range == 1 else x * tf.cast(self.pixel_range, x.dtype))

    def without_softmax(self) -> "SavedModelClassifier":
        """Returns the same network without the softmax at its end.

        Raises:
            ValueError: if it does not end in a softmax, or if the softmax is inside a function of its own.
        """
        signature = getattr(self._loaded, "signatures", {}).get("serving_default")
        programs = [*getattr(getattr(self._loaded, "serve", None), "concrete_functions", ()), signature]
        endings = []
        for program in filter(None, programs):
            last = program.outputs[0].op
            while last.type == "Identity":
                last = last.inputs[0].op
            if last.type == "Softmax":
                stripped = copy.copy(self)
                stripped._forward = inference_forward(_up_to(program, last.inputs[0]))
                return stripped
            endings.append(last.type)
        inside = any(ending.endswith("PartitionedCall") for ending in endings) and len(set(endings)) == 1
        raise ValueError(
            "Expected a SavedModel whose last operation is a softmax; "
            + (
                "this one ends in a function of its own, which cannot be cut: export the network without its softmax"
                if inside
                else "a network that returns logits needs no change"
            )
            + f". Received: {self.path}, which ends in {' or '.join(sorted(set(endings))) or 'nothing known'}"
        )


def _up_to(program: Any, tensor: tf.Tensor) -> Any:
    """Returns the part of a concrete function of one argument that computes `tensor`, as a function."""
    definition, name = program.graph.as_graph_def(), tensor.name
    places = [each.name for each in program.inputs]  # the argument, then the captured tensors

    @tf.function(autograph=False)
    def function(x: tf.Tensor) -> tf.Tensor:
        feeds = dict(zip(places, [x, *map(tf.identity, program.captured_inputs)], strict=True))
        return tf.graph_util.import_graph_def(definition, input_map=feeds, return_elements=[name], name="")[0]

    return function


def load_saved_model(path: str | Path) -> SavedModelClassifier:
    """Loads a SavedModel directory, from `keras.Model.export` or any other program.

    A SavedModel is a program: load only files that you trust.

    Args:
        path: Directory that holds `saved_model.pb`.

    Returns:
        Callable from `(batch, ...)` images in `[0, 1]` to `(batch, classes)` float32 logits. It uses `serve` if
        there is one, else the signature `serving_default`, else the loaded object itself.

    Raises:
        FileNotFoundError: if there is no such directory.
        ValueError: if it is not a SavedModel, is damaged, or does not go from one tensor to one tensor.
    """
    path = user_path(path)
    if not path.exists():
        raise FileNotFoundError(f"No SavedModel at {path}: there is no such directory; check the path.")
    if not path.is_dir():
        raise ValueError(
            f"A SavedModel is a directory; {way_in(path) or 'pass the one that keras.Model.export wrote'}. "
            f"Received: the file {path}"
        )
    if not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise ValueError(
            f"{path} is not a SavedModel, because it holds no saved_model.pb; "
            f"{way_in(path) or 'pass the directory that keras.Model.export wrote'}."
        )
    try:
        loaded = tf.saved_model.load(str(path))
    # Damaged files raise many types: errors of protobuf, of the operating system, and of TensorFlow.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"The SavedModel at {path} is damaged, export or copy it again: {reason}") from error
    return SavedModelClassifier(loaded, path)


def _only(specs: Any, path: str, what: str) -> Any:
    """Returns the only tensor specification of a signature's inputs or outputs."""
    if len(specs) != 1:
        raise ValueError(
            f"The SavedModel has one {what} tensor; export a model from images to logits. "
            f"Received: {sorted(specs)} in {path}"
        )
    return next(iter(specs.values()))


def _shape(spec: Any) -> tuple[int | None, ...] | None:
    """Returns the static shape of a tensor specification, or `None` if the rank is unknown."""
    return None if spec is None or spec.shape.rank in (None, 0) else tuple(spec.shape)
