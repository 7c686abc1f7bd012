"""Times one PGD-10 adversarial training step against PyTorch and plain Keras, in one run.

    python -m benchmarks.train_step --model=resnet18 --rounds=5
    python -m benchmarks.train_step --model=resnet34 --contenders=binary,binary_train,torch_binary
    python -m benchmarks.train_step --model=vgg16 --objective=trades --batch_size=16 --contenders=prune,finetune,dense

Contenders, each in a process of its own, one after the other, `--rounds` times over:

- sparse: `RobustModel` with `ConnectivitySampling` on rewiring kernels, fed by `fit`'s own compiled function;
- dense: the same without a sparsifier, on plain kernels;
- prune, finetune: the phases of HYDRA, on kernels chosen by scores;
- binary, binary_train: a binary sub-network, exponent 0.1, whose attack has batch norm in inference mode or, as
  published, in training mode;
- keras: the same architecture of plain Keras layers, the whole step in one `tf.function`;
- torch: the same architecture and step in PyTorch, eager (the extra `benchmark`);
- torch_binary: the binary sub-network in PyTorch as published: masks sorted in every pass, attack in training mode.

Printed are the medians, the ratios to torch and to keras, the share of a sparse step that noise and rewiring take, or
of a binary step that the masks take (their own compiled function timed alone), how often the step was traced, and the
peak memory of each process.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_enum("model", "resnet18", ["resnet18", "resnet34", "vgg16", "wrn28_4"], "wrn28_4 without torch.")
flags.DEFINE_enum("objective", "at", ["at", "trades"], "Objective; keras and torch know at alone.")
flags.DEFINE_integer("batch_size", 32, "Images per step.", lower_bound=1)
flags.DEFINE_integer("steps", 3, "Timed steps per process, after two that are not.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "How often the contenders run in turn.", lower_bound=1)
flags.DEFINE_float("connectivity", 0.01, "Connectivity of the sparse contender.", 0, 1)
flags.DEFINE_list("contenders", ["sparse", "dense", "keras", "torch"], "Which to time.")
flags.DEFINE_string("contender", None, "Time this one in this process and print JSON; used by the script itself.")
flags.DEFINE_string("results_file", None, "Where to write everything as JSON.")

EPSILON, STEP_SIZE, NUM_STEPS = 8 / 255, 2 / 255, 10


def main(argv: list[str]) -> None:
    """Runs the contenders in turn and prints the table."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    if FLAGS.contender:
        print(json.dumps(measure(FLAGS.contender)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in FLAGS.contenders}
    for number in range(FLAGS.rounds):
        for name in FLAGS.contenders:
            runs[name].append(in_new_process(name))
            print(
                f"round {number + 1}: {name:12s} {FLAGS.batch_size / runs[name][-1]['seconds']:6.2f} images/s",
                flush=True,
            )
    report(runs)
    if FLAGS.results_file:
        with open(FLAGS.results_file, "w") as file:  # noqa: PTH123
            json.dump({"model": FLAGS.model, "batch_size": FLAGS.batch_size, "runs": runs}, file, indent=1)


def report(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Prints medians and ratios."""
    speed = {
        name: statistics.median(FLAGS.batch_size / run["seconds"] for run in found) for name, found in runs.items()
    }
    print(
        f"\n{FLAGS.model}, batch {FLAGS.batch_size}, {FLAGS.objective} with PGD-{NUM_STEPS}, "
        f"connectivity {FLAGS.connectivity}"
    )
    peers = [name for name in ("torch", "torch_binary", "keras", "dense") if name in speed]
    print(f"{'':12s} images/s  peak MiB  traces" + "".join(f"  x {name}" for name in peers))
    for name, found in runs.items():
        memory = statistics.median(run["peak_mib"] for run in found)
        ratios = "".join(f"  {speed[name] / speed[peer]:{len(peer) + 2}.2f}" for peer in peers)
        print(f"{name:12s} {speed[name]:8.2f}  {memory:8.0f}  {found[0]['traces']:6}{ratios}")
    for name in sorted({"binary", "binary_train"} & set(runs)):
        share = statistics.median(run["mask_seconds"] / run["seconds"] for run in runs[name])
        print(f"masks take {100 * share:.1f} % of a step of {name}")
    if "sparse" in runs:
        share = statistics.median(run["sparsifier_seconds"] / run["seconds"] for run in runs["sparse"])
        print(f"noise and rewiring take {100 * share:.1f} % of a sparse step")
        print(f"one copy of the kernels is {runs['sparse'][0]['kernel_mib']:.0f} MiB")


def in_new_process(contender: str) -> dict[str, Any]:
    """Measures a contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train_step", f"--contender={contender}"]
    command += [
        f"--{name}={FLAGS[name].value}" for name in ("model", "objective", "batch_size", "steps", "connectivity")
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(contender: str) -> dict[str, Any]:
    """Returns the median seconds of a step, and the peak memory of this process in MiB."""
    prepare = {"keras": plain_keras, "torch": pytorch, "torch_binary": pytorch_binary}.get(contender, ours)
    step, extras = prepare(contender)
    for _ in range(2):
        step()
    seconds = median_seconds(step, FLAGS.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mib": peak, **{name: value() for name, value in extras.items()}}


def median_seconds(step: Callable[[], Any], count: int) -> float:
    """Returns the median duration of `count` calls."""
    durations = []
    for _ in range(count):
        begin = time.perf_counter()
        step()
        durations.append(time.perf_counter() - begin)
    return statistics.median(durations)


def ours(contender: str) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]]]:
    """The training function that `RobustModel.fit` runs."""
    import tensorflow as tf

    import tf_robust_sparse as trs

    is_binary = contender in ("binary", "binary_train")
    kernel = {"sparse": "rewiring", "prune": "subnet", "finetune": "subnet"}.get(contender, "plain")
    kernel = "signed" if is_binary else kernel
    arguments: dict[str, Any] = {"connectivity": FLAGS.connectivity} if kernel != "plain" else {}
    if is_binary:
        arguments["variant"] = trs.models.Variant("cifar10", False, False, True)
        arguments["padding_mode"] = "symmetric"
    network = trs.models.build(FLAGS.model, seed=0, kernel=kernel, **arguments)
    if kernel == "subnet":
        trs.sparsity.scaled_scores(network)
        trs.training.Phase(contender).begin(network)
    if is_binary:
        trs.sparsity.uniform_scores(network, 0.01)
        fractions = trs.sparsity.keep_fractions(network, FLAGS.connectivity, "adaptive", 0.1)
        trs.sparsity.set_keep_fractions(network, fractions)
        trs.training.Phase("prune").begin(network)
    sparsifier = trs.sparsity.ConnectivitySampling(FLAGS.connectivity) if contender == "sparse" else None
    attack = trs.attacks.LinfPGD(EPSILON, STEP_SIZE, NUM_STEPS)
    objective_of = {"at": trs.objectives.AT, "trades": trs.objectives.TRADES}
    objective = objective_of[FLAGS.objective](attack)
    if is_binary:
        best = trs.attacks.LinfPGD(EPSILON, STEP_SIZE, NUM_STEPS, keep_best=True)
        objective = trs.objectives.AT(best, batch_norm="training" if contender == "binary_train" else "inference")
    model = trs.RobustModel(network, objective, sparsifier)
    model.compile(trs.training.sgdw(0.1, 5e-4))
    traces = []
    perturb = model.objective.perturb
    model.objective.perturb = lambda *args, **kwargs: traces.append(1) or perturb(*args, **kwargs)  # type: ignore
    data = batches(tf)
    model.make_train_function()

    def step() -> None:
        float(model.train_function(data)["loss"])

    def sparsifier_seconds() -> float:
        if sparsifier is None:
            return 0.0

        @tf.function
        def rewire() -> None:
            sparsifier.after_update(sparsifier.before_update(model.optimizer), model.optimizer)

        rewire()
        return median_seconds(rewire, 5)

    def mask_seconds() -> float:
        if not is_binary:
            return 0.0

        @tf.function
        def masks() -> Any:
            return [layer.compute_kernel_mask() for layer in trs.layers.kernel_layers(network)]

        masks()
        return median_seconds(masks, 5)

    entries = trs.sparsity.statistics.summary(network)["prunable"]
    return step, {
        "mask_seconds": mask_seconds,
        "sparsifier_seconds": sparsifier_seconds,
        "traces": lambda: len(traces),
        "kernel_mib": lambda: 4 * entries / 2**20,
    }


def plain_keras(contender: str) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]]]:
    """Plain Keras layers and the step as one writes it by hand, in one `tf.function`."""
    import keras
    import tensorflow as tf

    import tf_robust_sparse as trs

    network = trs.saving.strip(trs.models.build(FLAGS.model, seed=0))
    network.trainable = True
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-3)
    optimizer.build(network.trainable_variables)
    traces = []

    def cross_entropy(x: Any, y: Any, training: bool) -> Any:
        logits = network(x, training=training)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)

    @tf.function
    def compiled(x: Any, y: Any) -> Any:
        traces.append(1)

        def ascend(i: Any, x_adv: Any) -> tuple[Any, Any]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x_adv)
                loss = cross_entropy(x_adv, y, training=False)
            x_adv += STEP_SIZE * tf.sign(tape.gradient(loss, x_adv))
            return i + 1, tf.clip_by_value(x + tf.clip_by_value(x_adv - x, -EPSILON, EPSILON), 0, 1)

        start = tf.clip_by_value(x + tf.random.uniform(tf.shape(x), -EPSILON, EPSILON), 0, 1)
        _, x_adv = tf.while_loop(lambda i, _: i < NUM_STEPS, ascend, (0, start), parallel_iterations=1)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(cross_entropy(x_adv, y, training=True))
        weights = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    data = batches(tf)
    return lambda: float(compiled(*next(data))), {"traces": lambda: len(traces)}


def pytorch(contender: str) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]]]:
    """PyTorch, eager, gradients of the attack with respect to the images only."""
    import torch
    import torch.nn.functional as F

    from benchmarks.torch_networks import NETWORKS

    network = NETWORKS[FLAGS.model]()
    weights = list(network.parameters())
    optimizer = torch.optim.SGD(weights, 0.1, momentum=0.9, weight_decay=5e-3)
    x, y = torch.rand(FLAGS.batch_size, 3, 32, 32), torch.randint(0, 10, (FLAGS.batch_size,))

    def step() -> float:
        network.eval()
        x_adv = (x + torch.empty_like(x).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
        for _ in range(NUM_STEPS):
            x_adv = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(network(x_adv), y), [x_adv])
            with torch.no_grad():
                x_adv = x_adv + STEP_SIZE * gradient.sign()
                x_adv = (x + (x_adv - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)
        network.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x_adv), y)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step, {"traces": lambda: 0}


def pytorch_binary(contender: str) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]]]:
    """PyTorch, eager, as the binary sub-networks were published: scores sorted in each pass, batch norm in training."""
    import torch
    import torch.nn.functional as F

    from benchmarks.torch_networks import NETWORKS, SubnetConv, of_signs
    from tf_robust_sparse.sparsity.allocation import adaptive_fractions

    dense = NETWORKS[FLAGS.model]()
    sizes = [weight.numel() for weight in dense.parameters() if weight.ndim > 1]
    fractions = adaptive_fractions(sizes, FLAGS.connectivity, 0.1)
    network = of_signs(dense, dict(zip(sizes, fractions, strict=True))).train()
    scores = [module.scores for module in network.modules() if isinstance(module, SubnetConv)]
    optimizer = torch.optim.SGD(scores, 0.1, momentum=0.9, weight_decay=5e-4)
    mean, deviation = (
        torch.tensor(values).reshape(1, 3, 1, 1) for values in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    )
    x, y = torch.rand(FLAGS.batch_size, 3, 32, 32), torch.randint(0, 10, (FLAGS.batch_size,))

    def step() -> float:
        x_adv = (x + torch.empty_like(x).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
        best, highest = x_adv, torch.zeros(len(x))
        for _ in range(NUM_STEPS):
            x_adv = x_adv.detach().requires_grad_()
            losses = F.cross_entropy(network((x_adv - mean) / deviation), y, reduction="none")
            losses.mean().backward()
            gradient = x_adv.grad
            assert gradient is not None
            with torch.no_grad():
                better = losses > highest
                best = torch.where(better[:, None, None, None], x_adv, best)
                highest = torch.maximum(highest, losses)
                moved = x_adv + STEP_SIZE * gradient.sign()
                x_adv = (x + (moved - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)
            network.zero_grad()
        optimizer.zero_grad()
        loss = F.cross_entropy(network((best.detach() - mean) / deviation), y)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step, {"traces": lambda: 0}


def batches(tf: Any) -> Any:
    """Returns an endless iterator over one batch of noise."""
    x = tf.random.stateless_uniform((FLAGS.batch_size, 32, 32, 3), (0, 1))
    y = tf.random.stateless_uniform((FLAGS.batch_size,), (2, 3), 0, 10, tf.int64)
    return iter(tf.data.Dataset.from_tensors((x, y)).repeat())


if __name__ == "__main__":
    app.run(main)
