"""Tiny runs of HYDRA, and what they record."""

import json

from tf_robust_sparse.cli import hydra, settings

HYDRA = "run_hydra"
FEW = (
    *("--data=fashion_mnist_sample", "--model=small_cnn", "--train_examples=256", "--test_examples=64"),
    *("--batch_size=64", "--epsilon=0.1", "--step_size=0.05", "--num_steps=2", "--pgd_iters=2", "--pgd_restarts=1"),
)
ALL = (
    *(*FEW, "--epochs=2", "--prune_epochs=2", "--k=0.2", "--trainer=adv", "--rates=learned", "--rate_init=lamp"),
    *("--harp_gamma=2", "--rate_start=0.4", "--s2ap_gamma=0.05"),
)


def checked(parse, *words):
    """Parses and checks a command line; returns its flags."""
    flags = parse(HYDRA, *words)
    hydra.originals.translate()
    settings.check()
    return flags


def results(directory):
    return json.loads((directory / "results.json").read_text())
