"""Times what pieces of the modern recipe add to a training step, in one run.

    python -m benchmarks.recipe --model=resnet18
    python -m benchmarks.recipe --model=small_cnn --batch_size=128 --guard_every=200

The contenders are steps of adversarial training on noise of the size of the model's images, each alone in its own
compiled function; one step of each in turn, `--rounds` times over, so that all see the same machine. Printed are the
medians, and the ratios that matter: AWP, EMA, CutMix and DKL to the step they are added to, N-FGSM and its guard to
PGD-7. The guard's time is that of a probe and of its cosines, divided by the steps between them.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_enum("model", "resnet18", ["resnet18", "vgg16", "small_cnn"], "Network; small_cnn sees 28x28x1.")
flags.DEFINE_integer("batch_size", 32, "Images per step.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "How often the contenders step in turn, after one step that does not count.")
flags.DEFINE_float("connectivity", 1.0, "Connectivity; below 1 kernels are masked by RigL.", 0, 1)
flags.DEFINE_list("contenders", [], "Which to time; all by default.")
flags.DEFINE_integer("guard_every", 200, "Steps between two probes of the guard.", lower_bound=1)
flags.DEFINE_string("results_file", None, "Where to write the seconds as JSON.")

EPSILON, STEP_SIZE = 8 / 255, 2 / 255
AGAINST = {  # contender -> what it is compared with
    "ema": "pgd10",
    "swa": "pgd10",
    "awp": "pgd10",
    "trades_cutmix": "trades",
    "dkl": "trades",
    "consistency": "pgd10",
    "n_fgsm": "pgd7",
    "n_fgsm_guard": "pgd7",
}


def main(argv: list[str]) -> None:
    """Runs the contenders in turn and prints the table."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    names = FLAGS.contenders or ["pgd10", *AGAINST, "pgd7", "trades"]
    steps = {name: step_of(name) for name in names if name != "n_fgsm_guard"}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(FLAGS.rounds + 1):
        for name, step in steps.items():
            found = timed(step)
            if turn:
                seconds[name].append(found)
    if "n_fgsm_guard" in names:
        guard = guard_seconds()
        seconds["n_fgsm_guard"] = [found + guard for found in seconds["n_fgsm"]]
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(f"{FLAGS.model}, batch {FLAGS.batch_size}, connectivity {FLAGS.connectivity:g}, {FLAGS.rounds} rounds")
    for name, value in medians.items():
        other = AGAINST.get(name)
        ratio = ""
        if other in medians:  # of steps that follow each other, because the machine may change its pace
            pairs = zip(seconds[name], seconds[other], strict=True)
            ratio = f"  {statistics.median(mine / theirs for mine, theirs in pairs):.3f} x {other}"
        print(f"{name:14s} {1000 * value:9.1f} ms{ratio}")
    if FLAGS.results_file:
        with open(FLAGS.results_file, "w") as file:  # noqa: PTH123
            json.dump({"flags": FLAGS.flag_values_dict(), "seconds": seconds}, file, indent=1, default=str)


def timed(function: Callable[[], Any]) -> float:
    """Returns the seconds that a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def model_of(name: str) -> Any:
    """Returns a compiled model of a contender."""
    import tf_robust_sparse as trs

    attacks, objectives = trs.attacks, trs.objectives
    pgd = attacks.LinfPGD(EPSILON, STEP_SIZE, 7 if name == "pgd7" else 10)
    objective = {
        "awp": lambda: objectives.AWP(objectives.AT(pgd), 0.01),
        "trades": lambda: objectives.TRADES(pgd),
        "trades_cutmix": lambda: objectives.CutMix(objectives.TRADES(pgd)),
        "dkl": lambda: objectives.DKL(pgd),
        "consistency": lambda: objectives.Consistency(objectives.AT(pgd)),
        "n_fgsm": lambda: objectives.AT(attacks.NFGSM(EPSILON)),
    }.get(name, lambda: objectives.AT(pgd))()
    average = {"ema": trs.training.EMA, "swa": trs.training.SWA}.get(name, lambda: None)()
    sparse = FLAGS.connectivity < 1
    shape = (28, 28, 1) if FLAGS.model == "small_cnn" else (32, 32, 3)
    network = trs.models.build(FLAGS.model, input_shape=shape, kernel="masked" if sparse else "plain", seed=0)
    sparsifier = trs.sparsity.RigL(FLAGS.connectivity, end_step=10**6) if sparse else None
    model = trs.RobustModel(network, objective, sparsifier, average=average)
    model.compile(trs.training.sgdw(0.01, 5e-4))
    return model


def noise(model: Any, number: int) -> tuple[Any, Any]:
    """Returns images of noise, and labels."""
    import numpy as np

    generator = np.random.default_rng(0)
    x = generator.random((number, *model.network.input_shape[1:]), np.float32)
    return x, generator.integers(0, model.network.output_shape[-1], number)


def step_of(name: str) -> Callable[[], Any]:
    """Returns the training function that `fit` runs, on one batch."""
    import tensorflow as tf

    model = model_of(name)
    data = iter(tf.data.Dataset.from_tensors(noise(model, FLAGS.batch_size)).repeat())
    model.make_train_function()
    return lambda: float(model.train_function(data)["loss"])


def guard_seconds() -> float:
    """Returns the seconds that a `CollapseGuard` of 256 images takes in a step on average."""
    import tf_robust_sparse as trs

    model = model_of("n_fgsm")
    guard = trs.training.CollapseGuard(*noise(model, 256), probe_every=FLAGS.guard_every)
    guard.attach(model)
    guard.on_train_begin()
    parts = (guard._look_at_accuracy, guard.probe_every), (guard._look_at_cosine, guard.cosine_every)
    for measure, _ in parts:
        measure()
    return sum(timed(measure) / every for measure, every in parts)


if __name__ == "__main__":
    app.run(main)
