"""Times one step of adversarial neural pruning against PyTorch, in one run.

    python -m benchmarks.neural_pruning --rounds=3

A step on LeNet-5-Caffe is: attack the batch by PGD on the network of inference, pass clean and attacked images with
gates drawn, take the gradients of the loss of the gates and of the loss of the weights with vulnerability, and update
both by Adam. Contenders, each in a process of its own, one after the other, `--rounds` times over, on random images:

- ours: `NeuralPruningModel` with `VulnerabilitySuppression`, fed by `fit`'s own compiled function;
- at: the same network without gates and vulnerability, adversarial training alone;
- torch: the same step as ours in PyTorch, eager, gates computed once per attack, gradients of the attack for the images
  only, one forward pass of both halves with the same gates (the extra `benchmark`).

It prints medians, ratios, the time of the attack in ours, and how often the step was traced.
"""

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

from tf_robust_sparse.layers.kernel_seam import cached_for_inference
from tf_robust_sparse.training.optimizers import CoupledAdam

FLAGS = flags.FLAGS
flags.DEFINE_integer("batch_size", 64, "Images per step.", lower_bound=1)
flags.DEFINE_integer("num_steps", 20, "Steps of the attack.", lower_bound=1)
flags.DEFINE_integer("steps", 20, "Timed steps per process, after two that are not.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "How often the contenders run in turn.", lower_bound=1)
flags.DEFINE_list("contenders", ["ours", "at", "torch"], "Which to time.")
flags.DEFINE_string("contender", None, "Time this one in this process and print JSON; used by the script itself.")
flags.DEFINE_string("results_file", None, "Where to write everything as JSON.")

EPSILON, STEP_SIZE, BETA, STRENGTH, DECAY, IMAGES = 0.3, 0.01, 4, 1e-3, 1e-4, 60_000
GATE_RATE, WEIGHT_RATE = 1e-2, 1e-3


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
            print(f"round {number + 1}: {name:6s} {1e3 * runs[name][-1]['seconds']:7.1f} ms a step", flush=True)
    seconds = {name: statistics.median(run["seconds"] for run in found) for name, found in runs.items()}
    print(f"\nlenet_conv, batch {FLAGS.batch_size}, PGD-{FLAGS.num_steps}, {os.cpu_count()} cores, medians")
    for name, found in runs.items():
        ratio = f", {seconds['torch'] / seconds[name]:.2f} times as fast as torch" if "torch" in seconds else ""
        traces = f", traced {found[0]['traces']} times" if found[0]["traces"] else ""
        print(f"{name:6s} {1e3 * seconds[name]:7.1f} ms{ratio}{traces}")
    if "ours" in runs:
        share = statistics.median(run["attack"] / run["seconds"] for run in runs["ours"])
        print(f"the attack takes {100 * share:.0f} % of a step of ours")
    if FLAGS.results_file:
        with open(FLAGS.results_file, "w") as file:  # noqa: PTH123
            json.dump({"batch_size": FLAGS.batch_size, "num_steps": FLAGS.num_steps, "runs": runs}, file, indent=1)


def in_new_process(contender: str) -> dict[str, Any]:
    """Measures a contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.neural_pruning", f"--contender={contender}"]
    command += [f"--{name}={FLAGS[name].value}" for name in ("batch_size", "num_steps", "steps")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(contender: str) -> dict[str, Any]:
    """Returns the median seconds of a step, of its attack, and how often it was traced."""
    step, attack, traces = pytorch() if contender == "torch" else ours(gated=contender == "ours")
    found = {"seconds": median_seconds(step), "attack": median_seconds(attack) if attack else 0.0}
    return {**found, "traces": len(traces)}


def median_seconds(call: Callable[[], Any]) -> float:
    """Returns the median duration of `--steps` calls, after two that are not counted."""
    durations = []
    for _ in range(FLAGS.steps + 2):
        begin = time.perf_counter()
        call()
        durations.append(time.perf_counter() - begin)
    return statistics.median(durations[2:])


def data() -> tuple[np.ndarray, np.ndarray]:
    """Returns a batch of noise, and labels."""
    random = np.random.default_rng(0)
    return random.random((FLAGS.batch_size, 28, 28, 1), np.float32), random.integers(0, 10, FLAGS.batch_size)


def ours(gated: bool) -> tuple[Callable[[], Any], Callable[[], Any], list[int]]:
    """The training function that `fit` runs."""
    import tensorflow as tf

    import tf_robust_sparse as trs

    network = trs.models.lenet_conv(gates=gated, seed=0)
    attack = trs.attacks.LinfPGD(EPSILON, STEP_SIZE, FLAGS.num_steps)
    objective: trs.objectives.Objective = trs.objectives.CleanAndAdversarial(attack, weight=2 / 3, joint=True)
    if gated:
        objective = trs.objectives.VulnerabilitySuppression(objective, STRENGTH)
        model: trs.RobustModel = trs.training.NeuralPruningModel(network, objective, BETA / IMAGES)
        model.compile(trs.training.GatedAdam(GATE_RATE, weight_rate=WEIGHT_RATE / GATE_RATE, l2=DECAY))
    else:
        model = trs.RobustModel(network, objective)
        model.compile(CoupledAdam(WEIGHT_RATE, l2=DECAY))
    traces: list[int] = []
    perturb = model.objective.perturb
    model.objective.perturb = lambda *args, **kwargs: traces.append(1) or perturb(*args, **kwargs)  # type: ignore
    x, y = (tf.constant(each) for each in data())
    batches = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    model.make_train_function()

    @tf.function
    def attacked() -> tf.Tensor:
        with cached_for_inference(network):
            return attack(network, x, y, seed=tf.constant([0, 1]))

    return lambda: float(model.train_function(batches)["loss"]), lambda: attacked().numpy(), traces


def pytorch() -> tuple[Callable[[], Any], None, list[int]]:
    """PyTorch, eager."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)
    weights = nn.ModuleList([nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5), nn.Linear(800, 500), nn.Linear(500, 10)])
    raw = nn.ParameterList()
    for units in (20, 50, 800, 500):
        raw.append(nn.Parameter(torch.full((units,), -1.0)))
        raw.append(nn.Parameter(torch.full((units,), 0.5413)))
    of_gates = torch.optim.Adam(raw.parameters(), GATE_RATE, eps=1e-8)
    of_weights = torch.optim.Adam(weights.parameters(), WEIGHT_RATE, eps=1e-8, weight_decay=DECAY)
    images, labels = data()
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)

    def posteriors() -> list[tuple[Any, Any]]:
        return [
            (F.softplus(raw[2 * i].clamp(min=-10)), F.softplus(raw[2 * i + 1].clamp(-10, 50)))
            for i in range(len(raw) // 2)
        ]

    def mean(a: Any, b: Any) -> Any:
        z = b * torch.exp(torch.lgamma(1 + 1 / a) + torch.lgamma(b) - torch.lgamma(1 + 1 / a + b))
        return torch.where(z > 1e-3, z, torch.zeros_like(z))

    def drawn(a: Any, b: Any, rows: int) -> Any:
        u = torch.empty_like(a).uniform_(1e-6, 1 - 1e-6)
        log_pi = torch.log1p(-torch.exp(u.log() / b)) / a
        logit = log_pi - torch.log(-torch.expm1(log_pi) + 1e-20)
        v = torch.empty(rows, len(a)).uniform_(1e-6, 1 - 1e-6)
        z = torch.sigmoid((v.log() - torch.log1p(-v) + logit) / 0.1)
        return torch.cat([z, z])  # clean and attacked images see the same gates

    def forward(x: Any, gates: list[Any]) -> tuple[Any, list[Any]]:
        z = [gate if i > 1 else gate.reshape(*gate.shape, 1, 1) for i, gate in enumerate(gates)]
        f1 = F.relu(weights[0](x) * z[0])
        f2 = F.relu(weights[1](F.max_pool2d(f1, 2)) * z[1])
        f3 = F.relu(weights[2](F.max_pool2d(f2, 2).flatten(1) * z[2]))
        return weights[3](f3 * z[3]), [f1, f2, f3]

    def divergence(a: Any, b: Any, alpha: float = 1e-4) -> Any:
        terms = (1 - alpha / a) * (-0.577215664901532 - torch.digamma(b) - 1 / b)
        return (terms + torch.log(a * b / alpha) - (b - 1) / b).sum()

    def step() -> float:
        with torch.no_grad():
            means = [mean(a, b)[None] for a, b in posteriors()]
            x_adv = (x + torch.empty_like(x).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
        for _ in range(FLAGS.num_steps):
            x_adv = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(forward(x_adv, means)[0], y), [x_adv])
            with torch.no_grad():
                x_adv = x_adv + STEP_SIZE * gradient.sign()
                x_adv = (x + (x_adv - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)
        found = posteriors()
        logits, features = forward(torch.cat([x, x_adv.detach()]), [drawn(a, b, len(x)) for a, b in found])
        clean, attacked = F.cross_entropy(logits[: len(x)], y), F.cross_entropy(logits[len(x) :], y)
        moved = sum((f[: len(x)] - f[len(x) :]).abs().mean() for f in features) / len(features)
        kl = BETA / IMAGES * sum(divergence(a, b) for a, b in found)
        loss = (clean + 2 * attacked) / 3 + STRENGTH * moved
        gate_gradients = torch.autograd.grad(attacked + kl, list(raw.parameters()), retain_graph=True)
        weight_gradients = torch.autograd.grad(loss, list(weights.parameters()))
        for parameter, each in zip(raw.parameters(), gate_gradients, strict=True):
            parameter.grad = each
        for parameter, each in zip(weights.parameters(), weight_gradients, strict=True):
            parameter.grad = each
        of_gates.step()
        of_weights.step()
        return float(loss.detach())

    return step, None, []


if __name__ == "__main__":
    app.run(main)
