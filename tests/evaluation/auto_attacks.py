"""Short runs of AutoAttack on the toy network."""

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

from tests.attacks.toy import toy_network
from tf_robust_sparse.attacks import APGD, FAB, Square
from tf_robust_sparse.evaluation import AutoAttack

EPSILON = {"Linf": 0.01, "L2": 0.1, "L1": 0.4}
SOME = 60


def quick(model, norm="Linf", **settings):
    """A short ensemble."""
    epsilon = EPSILON[norm]
    attacks = [
        APGD(epsilon, norm, num_steps=10),
        APGD(epsilon, norm, "targeted-dlr", num_steps=10, num_targets=2),
        FAB(epsilon, norm, num_steps=5, num_targets=2),
        Square(epsilon, norm, num_queries=100),
    ]
    settings = {"batch_size": 32, "verbose": False, "attacks": attacks, **settings}
    return AutoAttack(model, norm, epsilon, "custom", **settings)


class Whole(NamedTuple):
    """An evaluation, and what it left."""

    result: dict[str, Any]
    attack: AutoAttack
    calls: list[str]
    state: Path
    log: str
    screen: str


def evaluated(some, folder, attacks=None, **settings):
    """Evaluates the toy network on images and labels, and leaves log and state in a folder."""
    attack = quick(
        toy_network(),
        state_path=folder / "state.json",
        log_path=folder / "log.txt",
        verbose=True,
        **({} if attacks is None else {"attacks": attacks()}),
        **settings,
    )
    calls = []
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        result = attack.run_standard_evaluation(*some, callback=lambda name, standing: calls.append(name))
    log = (folder / "log.txt").read_text()
    return Whole(result, attack, calls, folder / "state.json", log, screen.getvalue())
