"""The kernels on memory of exactly the size that a plan asks for, watched by the address and behavior sanitizers."""

import shutil
import subprocess

import keras
import numpy as np
import pytest

from tests.engine.test_engine import WIDTHS, branched, make_engine, pytestmark, sparse_weights  # noqa: F401
from tf_robust_sparse.engine.library import FOLDER


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc compiles with sanitizers")
@pytest.mark.parametrize("width", [pytest.param(w, marks=() if w == WIDTHS[0] else pytest.mark.full) for w in WIDTHS])
def test_nothing_is_read_or_written_outside_of_a_plan(width, tmp_path):
    program, source = tmp_path / "driver", FOLDER.parents[1] / "tests" / "engine" / "driver.c"
    options = ("-O0", f"-DVW={width}", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    built = subprocess.run(
        ["gcc", *options, f"-I{FOLDER}", "-o", str(program), str(source)], capture_output=True, text=True, check=False
    )
    if "cannot find" in built.stderr:
        pytest.skip("this gcc has no sanitizers")
    assert built.returncode == 0, built.stderr
    runs = b""
    rng = np.random.default_rng(0)
    for number in range(4):
        network = branched() if number < 1 else odd_shapes(rng)
        sparse_weights(network, float(rng.choice([0.0, 0.1, 0.9])), rng)
        for lanes, gradient in ((1, False), (5, False), (16, True)):
            engine, words = make_engine(network, lanes, gradient)
            plan = engine.plan
            sizes = (int(np.prod(plan.shape)) * lanes, plan.classes * lanes)
            for new, ops in ((1, plan.forward), (0, plan.backward)):
                x, y = sizes if new else sizes[::-1]
                head = np.array([len(ops), len(words), plan.space, x, y, lanes, new], np.int64)
                runs += head.tobytes() + ops.tobytes() + words.tobytes() if len(ops) else b""
    done = subprocess.run([program], input=runs, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[:2000]


def odd_shapes(rng):
    """A convolution and pooling of random shapes."""
    side, stride = int(rng.choice([1, 2, 3, 5])), int(rng.choice([1, 2, 3]))
    image = keras.Input((int(rng.integers(5, 12)), int(rng.integers(5, 12)), int(rng.integers(1, 9))))
    x = keras.layers.Conv2D(int(rng.integers(1, 15)), side, stride, str(rng.choice(["same", "valid"])))(image)
    x = keras.layers.MaxPooling2D(2, padding="same")(x)
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
