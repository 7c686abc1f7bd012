"""Measures the robustness of a network under several attacks, and says how far the numbers can be trusted.

    python run_scripts/run_robustness_eval.py --saved_model=saved_models/quickstart/serve --data=fashion_mnist_sample \\
        --epsilon=0.1 --attacks=clean,fgsm,pgd,autoattack --test_examples=200

Without --network or --saved_model the run is found by the flags it was trained with: --data, --model, --objective,
--sparse_train, --connectivity. Writes the numbers as JSON after each attack.
"""

import datetime
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, networks, report, run_directory, run_lock, settings
from tf_robust_sparse.cli.sections import method
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.leaderboard import Leaderboard
from tf_robust_sparse.cli.sections.robustness import MINIMUM_NORM, Attacks, Files
from tf_robust_sparse.cli.sections.source import Classifier
from tf_robust_sparse.evaluation.corruption_accuracy import evaluate_corruptions
from tf_robust_sparse.evaluation.leaderboard import pruning_benchmark_row, radius, robustbench_row
from tf_robust_sparse.evaluation.report_page import write_report
from tf_robust_sparse.evaluation.security_curve import security_curve
from tf_robust_sparse.saving.atomic import replace_file

IF_INTERRUPTED = "the results file has the attacks that ended; what AutoAttack did is kept with --state_file"


def define() -> None:
    """Defines the flags."""
    Data.define()
    method.define()
    Classifier.define()
    Attacks.define()
    Files.define()
    Leaderboard.define()


def main() -> None:
    """Loads, attacks, reports."""
    settings.check()
    data, classifier, attacks, files = Data.read(), Classifier.read(), Attacks.read(), Files.read()
    leaderboard = Leaderboard.read()
    path = classifier.find()
    results_file = files.place(
        networks.next_to(path, "robustness.json"), {**files.written(), "robustbench_file": leaderboard.files}
    )
    state = files.path("state_file")
    if state:
        run_lock.take_next_to(state, f"--state_file={files.state_file}")
    load = functools.cache(data.load)
    model = classifier.load(path, load)
    images = load()
    source = attacks.source(images)
    description = leaderboard.description(model, path, images.name) if leaderboard.files else {}
    # Each attack is compiled once, which TensorFlow takes for tracing again and again.
    tf.get_logger().setLevel("ERROR")
    begin = time.perf_counter()
    facts = {
        **networks.file_facts(path),
        **networks.weight_facts(model),
        "command": command_line.asked(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    found: dict[str, Any] = {}
    examples: dict[str, np.ndarray] = {}

    def write(unfinished: bool) -> dict[str, Any]:
        results = {
            **({"unfinished": True} if unfinished else {}),
            "norm": attacks.norm,
            "epsilon": attacks.radius,
            **suite.results(),
            **found,
            "pixel_range": classifier.pixel_range,
            "seconds": time.perf_counter() - begin,
            "network": str(path),
            **facts,
            "seed": data.seed,
        }
        return run_directory.write_results(results_file, results, images)

    with command_line.about(classifier.flag, "data"):
        suite = trs.evaluation.RobustnessSuite(model, data.test_batches(images), data.batch_size)
        if state and state.exists():
            with command_line.about("state_file"):
                attacks.auto_attack(model, files).check(suite.x, suite.y)
        attack(suite, model, source, found, examples, lambda: write(unfinished=True))
    results = write(unfinished=False)
    show(results, [results_file, *write_others(results, description, examples or None, images.class_names)])


def attack(
    suite: trs.evaluation.RobustnessSuite,
    model: Callable[..., Any],
    source: Callable[..., Any] | None,
    found: dict[str, Any],
    examples: dict[str, np.ndarray],
    after_each: Callable[[], Any],
) -> None:
    """Runs the attacks in their order, and whatever else was asked for.

    Corruptions come first: they are quick, and files that do not fit are found out before hours of attacks.

    Args:
        suite: Runs and records them.
        model: The network under attack.
        source: The network that examples are transferred from, or `None`.
        found: Gets `corruptions`, `security_curve` and `foolbox_check` where asked for.
        examples: Gets what AutoAttack found.
        after_each: Called after each of them.
    """
    attacks, files = Attacks.read(), Files.read()
    if "corruptions" in attacks.names:
        with command_line.about("corruptions_dir"):
            found["corruptions"] = evaluate_corruptions(
                *(model, (suite.x, suite.y), attacks.corruptions_dir),
                batch_size=suite.batch_size,
                seed=Data.read().seed,
            )
        after_each()
    for name in attacks.names:
        if name == "fgsm":
            suite.gradient_attack(name, attacks.fgsm())
        elif name == "pgd":
            suite.gradient_attack(name, attacks.pgd())
        elif name == "transfer" and source is not None:
            with command_line.about("transfer_from"):
                suite.transfer(name, source, attacks.pgd())
        elif name == "autoattack" and attacks.individual:
            suite.auto_attack_individual(name, attacks.auto_attack(model, files), after_each)
        elif name == "autoattack":
            with command_line.about("state_file"):
                result = suite.auto_attack(name, attacks.auto_attack(model, files))
            examples |= {
                "x": suite.x,
                "y": suite.y,
                **{key: result[key] for key in ("x_adv", "y_adv", "broken_by")},
                "attacks": np.array(list(result["attacks"])),
            }
        elif name == "square":
            suite.auto_attack(name, attacks.square(model))
        elif name in MINIMUM_NORM:
            suite.minimum_norm(name, attacks.minimum_norm(name, suite), attacks.radius)
        if name in suite.attacks:
            after_each()
    if attacks.epsilons:
        found["security_curve"] = security_curve(
            model, (suite.x, suite.y), attacks.pgd(), attacks.epsilons, batch_size=suite.batch_size
        )
        after_each()
    if attacks.foolbox_check:
        found["foolbox_check"] = suite.foolbox_check("pgd", attacks.pgd())


def write_others(
    results: dict[str, Any],
    description: dict[str, Any],
    examples: dict[str, np.ndarray] | None,
    class_names: tuple[str, ...] | None,
) -> list[Path]:
    """Writes the files of --save_adversarials, --robustbench_file and --report, and returns them."""
    files, leaderboard = Files.read(), Leaderboard.read()
    written = []
    file = files.path("save_adversarials")
    if file and examples is not None:
        kept: dict[str, Any] = {name: examples[name] for name in ("x_adv", "y", "y_adv", "broken_by", "attacks")}
        with replace_file(file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **kept)
        written.append(file)
    rows = (robustbench_row, pruning_benchmark_row)
    for file, row in zip(leaderboard.files, rows, strict=False):
        run_directory.write_json(file, row(results, description))
        written.append(file)
    page = files.path("report")
    if page:
        titled = {**results, "title": leaderboard.paper_title or results["network"]}
        written += write_report(page, titled, examples, class_names)
    return written


def show(results: dict[str, Any], written: list[Path]) -> None:
    """Prints the accuracies, the doubts and where everything is."""
    print()
    report.show_share("Clean accuracy", results["clean_accuracy"], f"on {results['images']} test images")
    for name, found in results["attacks"].items():
        effort = report.words(found, ("version", "attack", "num_steps", "num_queries", "restarts"))
        report.show_share(name, found["robust_accuracy"], f"{effort}, {found['seconds']:.0f} s")
        if found.get("median_distance") is not None:
            print(f"{'':19} {found['median_distance']:8.4g}   median distance, {found['norm']}")
    ball = f"{results['norm']}, epsilon {radius(results['norm'], results['epsilon'])}"
    if results["attacks"]:
        report.show_share("Worst case", results["robust_accuracy"], ball)
    if "corruptions" in results:
        found = results["corruptions"]
        kinds = f"mean of {len(found['corruptions'])} kinds"
        report.show_share("Corruptions", found["mean_corruption_accuracy"], kinds)
    for point in results.get("security_curve", {}).get("points", []):
        report.show_share(f"epsilon {point['epsilon']:.4g}", point["robust_accuracy"])
    for name, found in results.get("foolbox_check", {}).items():
        alone = f"{found['disagreements']} images, {len(found['broken_by_foolbox_only'])} broken by Foolbox only"
        report.show_share(f"Foolbox {name}", found["robust_accuracy"], f"disagrees with our PGD on {alone}")
    of_curve = results.get("security_curve", {}).get("flags", [])
    for warning in dict.fromkeys([*results["flags"], *of_curve]):
        print(f"Warning: {warning}")
    print(f"Record              {', '.join(map(str, written))}", flush=True)
