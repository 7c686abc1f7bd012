"""Times training of the dense 300-100 network against PyTorch and Keras' `fit`, in one run.

    python -m benchmarks.lottery --rounds=5

Contenders, one after the other, `--rounds` times over, on random images:

- trials: `StackedRobustModel.fit` of `--trials` networks, each in a process of one thread, as
  run_lottery_tickets.py runs them;
- ours: `StackedRobustModel.fit` of one network, with the threads of one process;
- stacked: the same of `--trials` networks together;
- xla: as ours, with the step compiled by XLA (not by default, for it is slower);
- keras: the same network of plain Keras layers, `compile` and `fit`, natural training alone;
- torch: the same step in PyTorch, eager (the extra `benchmark`);
- torch_trials: the same of `--trials` networks, each in a process of one thread.

Printed are steps per second of all networks by kind of training, ratios to torch and keras, what part of the time goes
into measuring the networks every 500 steps on two sets of `--eval_images`, and how many images make that a quarter.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

from tf_robust_sparse.data.stacked_batches import stacked_batches
from tf_robust_sparse.models.unbiased_dense import unbiased_dense_300_100
from tf_robust_sparse.training.optimizers import FusedAdam

FLAGS = flags.FLAGS
flags.DEFINE_integer("batch_size", 60, "Images per step.", lower_bound=1)
flags.DEFINE_integer("steps", 300, "Timed steps of natural training; a third of FGSM, a tenth of PGD.", lower_bound=10)
flags.DEFINE_integer("rounds", 3, "How often the contenders run in turn.", lower_bound=1)
flags.DEFINE_integer("trials", 3, "Networks of the contenders of several.", lower_bound=2)
flags.DEFINE_integer(
    "eval_images", 1000, "Images of each of two sets that are measured every 500 steps.", lower_bound=1
)
flags.DEFINE_list("kinds", ["natural", "fgsm", "pgd"], "Which training to time.")
flags.DEFINE_list("contenders", ["trials", "ours", "stacked", "keras", "torch", "torch_trials"], "Which to time.")
flags.DEFINE_string("contender", None, "Time this one in this process and print JSON; used by the script itself.")
flags.DEFINE_bool("in_turn", False, "Wait for a line on standard input before timing; used by the script itself.")
flags.DEFINE_string("results_file", None, "Where to write everything as JSON.")

EPSILON, STEP_SIZE, NUM_STEPS, RATE, SMOOTHING = 0.3, 0.05, 10, 0.0012, 0.1
SHARE = {"natural": 1, "fgsm": 3, "pgd": 10}
SIDE_BY_SIDE = {"trials": "ours", "torch_trials": "torch"}  # what each process of one thread runs
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}


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
            runs[name].append(in_new_processes(name))
            found = ", ".join(f"{kind} {1 / seconds:.0f}" for kind, seconds in runs[name][-1]["seconds"].items())
            print(f"round {number + 1}: {name:12s} {found} steps/s", flush=True)
    report(runs)
    if FLAGS.results_file:
        with open(FLAGS.results_file, "w") as file:  # noqa: PTH123
            json.dump({"batch_size": FLAGS.batch_size, "trials": FLAGS.trials, "runs": runs}, file, indent=1)


def report(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Prints medians and ratios."""
    speed = {
        (name, kind): statistics.median(1 / run["seconds"][kind] for run in found)
        for name, found in runs.items()
        for kind in FLAGS.kinds
        if kind in found[0]["seconds"]
    }
    print(f"\ndense 300-100, batch {FLAGS.batch_size}, {os.cpu_count()} cores, steps per second (x torch, x keras)")
    print(f"{'':12s}" + "".join(f"  {kind:>22s}" for kind in FLAGS.kinds))
    for name in runs:
        line = f"{name:12s}"
        for kind in FLAGS.kinds:
            own = speed.get((name, kind))
            cell = "-"
            if own is not None:
                peers = [speed.get((peer, kind)) for peer in ("torch", "keras")]
                cell = f"{own:.0f} (" + ", ".join(f"{own / peer:.2f}" if peer else "-" for peer in peers) + ")"
            line += f"  {cell:>22s}"
        print(line)
    for name in ("trials", "ours", "stacked"):
        for kind in FLAGS.kinds if name in runs else []:
            for attack in runs[name][0]["measure"][kind]:
                measuring, training = (
                    statistics.median(values)
                    for values in zip(
                        *((run["measure"][kind][attack], 500 * run["seconds"][kind]) for run in runs[name]), strict=True
                    )
                )
                share, fitting = measuring / (measuring + training), FLAGS.eval_images * training / (3 * measuring)
                print(
                    f"{name}, {kind} training: 2 x {FLAGS.eval_images} images under {attack} every 500 steps take "
                    f"{100 * share:.0f} % of the time; 2 x {fitting:.0f} a quarter"
                )


def in_new_processes(contender: str) -> dict[str, Any]:
    """Measures a contender in a process of its own, or in several of one thread that run at the same time."""
    command = [sys.executable, "-m", "benchmarks.lottery", f"--contender={SIDE_BY_SIDE.get(contender, contender)}"]
    command += [f"--{name}={FLAGS[name].value}" for name in ("batch_size", "steps", "trials", "eval_images")]
    command += [f"--kinds={','.join(FLAGS.kinds)}", "--in_turn"]
    count = FLAGS.trials if contender in SIDE_BY_SIDE else 1
    environment = {**os.environ, **(ONE_THREAD if contender in SIDE_BY_SIDE else {})}
    started = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(count)
    ]
    lines = _next_lines(started)
    while all(line.strip() == "ready" for line in lines):  # all are warm: on they go at once
        for process in started:
            process.stdin.write("go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        lines = _next_lines(started)
    errors = [process.communicate()[1] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{contender} failed:\n{errors[0][-2000:]}")
    return shared([json.loads(line) for line in lines])


def _next_lines(started: list[Any]) -> list[str]:
    return [process.stdout.readline() for process in started]


def shared(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the seconds of a step of all processes together: of the slowest, divided by their number."""
    slowest = {kind: max(one["seconds"][kind] for one in found) / len(found) for kind in found[0]["seconds"]}
    measure = {
        kind: {attack: max(one["measure"][kind][attack] for one in found) / len(found) for attack in attacks}
        for kind, attacks in found[0]["measure"].items()
    }
    return {"seconds": slowest, "measure": measure}


def measure(contender: str) -> dict[str, Any]:
    """Returns the seconds of a step of one network, and of measuring it, by kind of training and by attack."""
    prepare = {"keras": plain_keras, "torch": pytorch}.get(contender, ours)
    found: dict[str, Any] = {"seconds": {}, "measure": {}}
    for kind in FLAGS.kinds:
        if contender == "keras" and kind != "natural":
            continue
        count = max(FLAGS.steps // SHARE[kind], 10)
        steps, measuring, networks = prepare(contender, kind, count)
        found["seconds"][kind] = seconds_of(steps) / count / networks
        found["measure"][kind] = {attack: seconds_of(call) / networks for attack, call in measuring.items()}
    return found


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns the mean duration of two calls after one before; all processes begin at once.

    Not the shorter one: by then another process may have ended and left its core.
    """
    call()
    if FLAGS.in_turn:
        print("ready", flush=True)
        sys.stdin.readline()
    begin = time.perf_counter()
    call()
    call()
    return (time.perf_counter() - begin) / 2


def ours(contender: str, kind: str, count: int) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]], int]:
    """`StackedRobustModel.fit`, as the rounds of pruning call it."""
    import tensorflow as tf

    import tf_robust_sparse as trs

    networks = FLAGS.trials if contender == "stacked" else 1
    attacks: dict[str, trs.attacks.GradientAttack] = {
        "fgsm": trs.attacks.LinfFGSM(EPSILON, label="predicted"),
        "pgd": trs.attacks.LinfPGD(EPSILON, STEP_SIZE, NUM_STEPS, label="predicted"),
    }
    attack = attacks.get(kind, attacks["fgsm"])
    attack.unrolled = True
    objective: trs.objectives.Objective = trs.objectives.Natural(SMOOTHING)
    if kind != "natural":
        objective = trs.objectives.CleanAndAdversarial(attack, label_smoothing=SMOOTHING)
    network = trs.models.stack([unbiased_dense_300_100(seed=seed) for seed in range(networks)])
    model = trs.training.StackedRobustModel(network, objective, attack)
    model.compile(FusedAdam(RATE), steps_per_execution=count, jit_compile=contender == "xla")
    images, labels = data()
    batches = stacked_batches(len(labels), FLAGS.batch_size, range(networks))
    model.train_on(images, labels)
    x, y = tf.constant(images[: FLAGS.eval_images]), tf.constant(labels[: FLAGS.eval_images])

    def measuring(with_attack: trs.attacks.GradientAttack) -> None:
        for _ in range(2):
            model.measure(x, y, range(networks), attack=with_attack)

    calls = {
        name: functools.partial(measuring, each) for name, each in attacks.items() if name == kind or kind == "natural"
    }
    return lambda: model.fit(batches, steps_per_epoch=count, verbose=0), calls, networks


def plain_keras(contender: str, kind: str, count: int) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]], int]:
    """Plain Keras layers, `compile` and `fit` as in its guides."""
    import keras

    network = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(300, "relu", use_bias=False),
            keras.layers.Dense(100, "relu", use_bias=False),
            keras.layers.Dense(10, use_bias=False),
        ]
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=SMOOTHING)
    network.compile(keras.optimizers.Adam(RATE), loss, metrics=["accuracy"])
    images, labels = data()
    number = count * FLAGS.batch_size
    x, y = (images[:number] / 255).reshape(-1, 784).astype("float32"), np.eye(10, dtype="float32")[labels[:number]]
    return lambda: network.fit(x, y, FLAGS.batch_size, verbose=0), {}, 1


def pytorch(contender: str, kind: str, count: int) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]], int]:
    """PyTorch, eager: masks applied in each pass, gradients of the attack with respect to the images only."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    kernels = [
        torch.nn.Parameter(torch.randn(i, o) * (2 / (i + o)) ** 0.5) for i, o in ((784, 300), (300, 100), (100, 10))
    ]
    masks = [torch.ones_like(kernel) for kernel in kernels]
    optimizer = torch.optim.Adam(kernels, RATE, eps=1e-7)
    images, labels = data()
    x_all, y_all = torch.from_numpy(images).reshape(-1, 784).float() / 255, torch.from_numpy(labels)

    def forward(x: Any) -> Any:
        first, second, third = (kernel * mask for kernel, mask in zip(kernels, masks, strict=True))
        return torch.relu(torch.relu(x @ first) @ second) @ third

    def attacked(x: Any) -> Any:
        with torch.no_grad():
            label = forward(x).argmax(1)
            x_adv = x if kind == "fgsm" else (x + torch.empty_like(x).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
        for _ in range(1 if kind == "fgsm" else NUM_STEPS):
            x_adv = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(forward(x_adv), label, reduction="sum"), [x_adv])
            with torch.no_grad():
                x_adv = x_adv + (EPSILON if kind == "fgsm" else STEP_SIZE) * gradient.sign()
                x_adv = (x + (x_adv - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)
        return x_adv.detach()

    def steps() -> None:
        order = torch.randperm(len(x_all))
        for step in range(count):
            chosen = order[step * FLAGS.batch_size : (step + 1) * FLAGS.batch_size]
            x, y = x_all[chosen], y_all[chosen]
            x_adv = None if kind == "natural" else attacked(x)
            optimizer.zero_grad()
            loss = F.cross_entropy(forward(x), y, label_smoothing=SMOOTHING)
            if x_adv is not None:
                loss = 0.5 * loss + 0.5 * F.cross_entropy(forward(x_adv), y, label_smoothing=SMOOTHING)
            loss.backward()
            optimizer.step()

    return steps, {}, 1


def data() -> tuple[np.ndarray, np.ndarray]:
    """Returns bytes of noise as images, and labels."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (50_000, 28, 28, 1), np.uint8), random.integers(0, 10, 50_000)


if __name__ == "__main__":
    app.run(main)
