"""Networks as programs from the command line, and from Python."""

import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import run_script
from tests.cli.test_bad_input import assert_explained
from tf_robust_sparse import models
from tf_robust_sparse.engine import library

COMPILE = "run_compile"

pytestmark = pytest.mark.skipif(not library.available() or shutil.which("cc") is None, reason="there is no C compiler")


def sparse(network, density=0.01):
    """Random weights, of which few are not 0."""
    rng = np.random.default_rng(0)
    for layer in network.layers:
        layer.set_weights(
            [w * (rng.random(w.shape) < density) / density**0.5 if w.ndim > 1 else w for w in layer.get_weights()]
        )
    return network


def outputs_of(program, x):
    done = subprocess.run([program], input=x.tobytes(), capture_output=True, check=True)
    return np.array([line.split() for line in done.stdout.decode().splitlines()], np.float64)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float16", 2e-3), ("int8", 5e-2)])
def test_a_network_becomes_one_c_file_of_few_bytes(tmp_path, precision, tolerance):
    network = sparse(models.build("dense_300_100", seed=0))
    fast = trs.runtime.compile(network)
    x = np.random.default_rng(1).random((3, 28, 28, 1), np.float32)
    expected = network.predict(x, verbose=0)
    scale = np.abs(expected).max()
    for batch in (1, 3, 20):
        images = np.tile(x, (7, 1, 1, 1))[:batch]
        np.testing.assert_allclose(fast(images), network.predict(images, verbose=0), atol=1e-5 * scale)
    source = fast.export_c(tmp_path / "network.c", precision)
    warnings = ("-Wall", "-Wextra", "-Werror")
    subprocess.run(["cc", "-O2", *warnings, "-o", tmp_path / "network", source], check=True)
    np.testing.assert_allclose(outputs_of(tmp_path / "network", x), expected, atol=tolerance * scale)
    subprocess.run(["cc", "-O2", "-DNO_MAIN", "-c", "-o", tmp_path / "network.o", source], check=True)
    sizes = subprocess.run(["size", tmp_path / "network.o"], capture_output=True, text=True, check=True)
    text, data = map(int, sizes.stdout.splitlines()[1].split()[:2])
    assert text + data <= {"float32": 26_000, "float16": 20_480, "int8": 20_480}[precision]
    with pytest.raises(ValueError, match="must not exist"):
        fast.export_c(source)


def test_signs_take_a_bit_each(tmp_path):
    network = models.build("dense_300_100", kernel="signed", connectivity=0.1, seed=0)
    source = trs.runtime.compile(network).export_c(tmp_path / "network.c")
    program, library_ = tmp_path / "network", tmp_path / "network.o"
    subprocess.run(["cc", "-O2", "-o", program, source], check=True)
    x = np.random.default_rng(1).random((3, 28, 28, 1), np.float32)
    expected = network.predict(x, verbose=0)
    np.testing.assert_allclose(outputs_of(program, x), expected, atol=1e-5 * np.abs(expected).max())
    subprocess.run(["cc", "-O2", "-DNO_MAIN", "-c", "-o", library_, source], check=True)
    sizes = subprocess.run(["size", library_], capture_output=True, text=True, check=True)
    weights = sum(np.count_nonzero(layer.effective_kernel) for layer in trs.layers.kernel_layers(network))
    assert int(sizes.stdout.splitlines()[1].split()[0]) < 16_000 + 1.4 * weights  # a byte for where each one is


def test_convolutions_dense_kernels_and_the_command_line(tmp_path):
    """Zeros between rows, strides, blocks and pooling in the C file; and what the record holds."""
    image = keras.Input((9, 8, 3))
    x = keras.layers.Conv2D(7, 3, 2, "same", activation="relu")(image)
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(7, 3, padding="same")(x))
    x = keras.layers.MaxPooling2D(2)(keras.layers.Add()([x, keras.layers.Conv2D(7, 1)(x)]))
    network = keras.Model(image, keras.layers.Dense(5)(keras.layers.Flatten()(x)))
    network.save(tmp_path / "plain.keras")
    arguments = (f"--network={tmp_path / 'plain.keras'}", f"--output_dir={tmp_path / 'out'}")
    done = run_script(COMPILE, *arguments, "--benchmark", "--latency_seconds=0.02").expect()
    found = json.loads((tmp_path / "out" / "compile.json").read_text())
    assert set(found["latency"]) == {"1", "32"}
    assert {"engine", "TensorFlow", "LiteRT", "ONNX Runtime", "network.so"} == set(found["latency"]["1"])
    assert max(found["largest_difference_of_logits"].values()) <= 1e-5 * found["largest_logit"]
    assert "times TensorFlow's speed" in done.out
    pixels = np.random.default_rng(1).random((4, 9, 8, 3), np.float32)
    expected = network.predict(pixels, verbose=0)
    loaded = trs.runtime.load(tmp_path / "out" / "network.so")
    np.testing.assert_allclose(loaded(pixels), expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(ValueError, match="takes images of shape"):
        loaded(pixels[:, 1:])
    assert_explained(run_script(COMPILE, *arguments), "--output_dir", "--overwrite")
    alone = (
        "import ctypes, sys; n = ctypes.CDLL(sys.argv[1]); s = (ctypes.c_int * 4)(); n.network_shape(s);"
        "x = (ctypes.c_float * (s[0] * s[1] * s[2]))(*[0.5] * s[0] * s[1] * s[2]); y = (ctypes.c_float * s[3])();"
        "n.network_run(x, ctypes.c_long(1), y); print(*y); assert 'tensorflow' not in sys.modules"
    ).replace("[0.5] * s[0] * s[1] * s[2]", "[0.5] * (s[0] * s[1] * s[2])")
    done = subprocess.run(
        [sys.executable, "-c", alone, tmp_path / "out" / "network.so"], capture_output=True, text=True, check=True
    )
    gray = network.predict(np.full((1, 9, 8, 3), 0.5, np.float32), verbose=0)[0]
    np.testing.assert_allclose([float(each) for each in done.stdout.split()], gray, atol=1e-5 * np.abs(gray).max())


def test_bad_input_is_explained(tmp_path):
    fast = trs.runtime.compile(models.build("dense_300_100", seed=0))
    with pytest.raises(ValueError, match=r"shape \(batch, 28, 28, 1\)\. Received: \(2, 28, 28, 3\)"):
        fast(np.zeros((2, 28, 28, 3)))
    with pytest.raises(ValueError, match="precision='int4'"):
        fast.export_c(tmp_path / "network.c", "int4")
    image = keras.Input((6, 6, 3))
    odd = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.LayerNormalization()(image))))
    odd.save(tmp_path / "odd.keras")
    done = run_script(COMPILE, f"--network={tmp_path / 'odd.keras'}", f"--output_dir={tmp_path / 'out'}")
    assert_explained(done, "odd.keras", "does not know the layer")
    assert not (tmp_path / "out").exists()


def test_without_a_compiler_the_rest_works(tmp_path, monkeypatch):
    fast = trs.runtime.compile(models.build("dense_300_100", seed=0))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeError, match="needs a C compiler: install gcc or clang"):
        fast.save(tmp_path / "network.so")
    monkeypatch.setenv("TRS_ENGINE", "0")
    with pytest.raises(RuntimeError, match=r"kernels are not compiled.*install a C compiler"):
        trs.runtime.compile(models.build("dense_300_100", seed=0))
