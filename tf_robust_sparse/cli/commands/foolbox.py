"""Measures the robust accuracy of any network from pixels to logits with Foolbox's l-infinity PGD.

    python run_scripts/run_foolbox_eval.py --saved_model=saved_models/quickstart/serve --data=fashion_mnist_sample \\
        --pgd_epsilon=0.1 --pgd_iters=50 --pgd_restarts=10

Without --network or --saved_model the run is found by the flags it was trained with: --data, --model, --objective,
--sparse_train, --connectivity. Where there is no such run, these flags find the weights that are published with
connectivity sampling, where its README puts them: results/cifar10/resnet50/sparse1_at_best_weights.pickle for example.
Writes the numbers as JSON.
"""

import functools
from pathlib import Path

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, networks, report, run_directory, settings
from tf_robust_sparse.cli.networks import Kind
from tf_robust_sparse.cli.sections import method
from tf_robust_sparse.cli.sections.attacks import TestAttack
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.robustness import Results
from tf_robust_sparse.cli.sections.source import Classifier

_RECORDED_AS = {Kind.SAVED_MODEL: "saved_model", Kind.PUBLISHED: "weights"}


def define() -> None:
    """Defines the flags."""
    Data.define()
    method.define()
    Classifier.define(without=("strip_softmax",))
    TestAttack.define()
    Results.define()


def main() -> None:
    """Loads, attacks, reports."""
    settings.check()
    data, classifier, attack = Data.read(), Classifier.read(), TestAttack.read()
    path = classifier.find()
    file = Results.read().place(networks.next_to(path, "foolbox.json"))
    load = functools.cache(data.load)
    model = classifier.load(path, load)
    images = load()
    with command_line.about(classifier.flag, "data"):
        results = trs.evaluation.foolbox_linf_pgd(
            *(model, data.test_batches(images)),
            epsilon=attack.epsilon,
            num_steps=attack.pgd_iters,
            restarts=attack.pgd_restarts,
            seed=data.seed,
        )
    name = _RECORDED_AS.get(networks.recognize(path, classifier.flag), "network")
    run_directory.write_results(file, {**results, name: str(path)}, images)
    show(results, file)


def show(results: dict, file: Path) -> None:
    """Prints the two accuracies and where they were written."""
    attack = report.words(results, ("attack", "epsilon", "num_steps", "restarts"))
    print()
    report.show_share("Clean accuracy", results["clean_accuracy"], f"on {results['images']} test images")
    report.show_share("Robust accuracy", results["robust_accuracy"], attack)
    for warning in results["flags"]:
        print(f"Warning: {warning}")
    print(f"Record              {file}")
