"""Examples in docstrings of public names run, on a tiny network and a few images."""

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import tiny_images, tiny_network

FOLDERS = (trs.attacks, trs.certify, trs.evaluation, trs.objectives, trs.training)


def examples():
    for folder in FOLDERS:
        for name in folder.__all__:
            shown = getattr(folder, name)
            text = inspect.getdoc(shown) if inspect.isroutine(shown) or inspect.isclass(shown) else None
            for code in re.findall(r"```python\n(.*?)```", text or "", flags=re.DOTALL):
                yield pytest.param(code, id=f"{folder.__name__.rpartition('.')[2]}.{name}")


@pytest.fixture(scope="module")
def names():
    """What examples may use without making it; every label is wrong, so that long attacks end at once."""
    network, (x, _) = tiny_network("masked"), tiny_images(8)
    y = (np.asarray(network(x)).argmax(-1) + 1) % 10
    given = {"x": x, "y": y, "x_val": x, "y_val": y, "image": x[0], "objective": trs.objectives.Natural()}
    return {"trs": trs, "tf": tf, "keras": keras, "network": network, **given}


@pytest.mark.parametrize("code", examples())
def test_the_example_runs(code, names):
    """With few steps of each attack."""
    exec(re.sub(r"\b(num_steps|num_queries)=\d+", r"\1=3", code), dict(names))


def test_what_users_call_first_shows_an_example():
    shown = {parameter.id for parameter in examples()}
    first = {
        *("attacks.APGD", "attacks.LinfPGD", "certify.SmoothedClassifier", "certify.margins", "evaluation.AutoAttack"),
        *("evaluation.robust_accuracy", "objectives.AT", "objectives.MART", "objectives.TRADES"),
    }
    assert first | {"training.RobustModel"} <= shown
