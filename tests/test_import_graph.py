"""What may import what, and what importing the package may do."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tf_robust_sparse"

# Top to bottom. A folder imports from lines below its own, never from its own line or above.
DIAGRAM = [
    {"run_scripts"},
    {"cli"},
    {"training"},
    {"objectives", "evaluation"},
    {"runtime", "pretrained"},
    {"attacks", "certify", "sparsity", "models", "saving"},
    {"layers", "data"},
    {"paths", "schedules", "engine"},
    {"deprecation", "startup", "wording"},
]
LINE = {folder: number for number, line in enumerate(DIAGRAM) for folder in line}

# Imported by the one function that needs them, if at all: slow to import, optional, or with effects on the process.
LAZY = (
    *("foolbox", "matplotlib", "onnx", "scipy", "tensorflow_datasets", "tensorflow_model_optimization", "tf_keras"),
    *("absl.flags", "yaml"),
)

SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "run_scripts").rglob("*.py")])


def relative(path):
    return str(path.relative_to(ROOT))


def folder_of(path):
    """The folder of the diagram a source belongs to; `None` for the package's own `__init__.py`."""
    parts = path.relative_to(ROOT).parts
    if parts[0] == "run_scripts":
        return "run_scripts"
    return Path(parts[1]).stem if parts[1] != "__init__.py" else None


def imported_modules(path):
    """The modules that a source imports anywhere, `from a import b` as `a.b`, and the line of each import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno} imports by a relative path"
            yield from ((f"{node.module}.{name.name}", node.lineno) for name in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_folders_import_from_below_only(path):
    folder = folder_of(path)
    if folder is None:
        return
    assert folder in LINE, f"{folder} has no line in the diagram"
    for module, line in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "run_scripts":
            target = "run_scripts"
        elif parts[0] == "tf_robust_sparse" and len(parts) > 1 and folder != "run_scripts":
            target = parts[1]
        elif parts[0] == "tf_robust_sparse" and folder not in ("cli", "run_scripts"):
            pytest.fail(f"{relative(path)}:{line} imports the whole package")
        else:
            continue
        allowed = target == folder or LINE.get(target, -1) > LINE[folder]
        assert allowed, f"{relative(path)}:{line}: {folder} may not import {module}"


def test_every_folder_of_the_package_is_in_the_diagram():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(LINE)


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if folder_of(path) not in ("cli", "run_scripts")], ids=relative
)
def test_the_package_knows_neither_flags_nor_legacy_keras(path):
    for module, line in imported_modules(path):
        assert not module.startswith(("absl.flags", "absl.app", "tf_keras")), f"{relative(path)}:{line}: {module}"
    assert "tf.keras." not in path.read_text().replace("tf.keras.__version__", "")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=relative)
def test_init_files_hold_imports_and_tables_only(path):
    first, *rest = ast.parse(path.read_text()).body
    assert isinstance(first, ast.Expr) and isinstance(first.value.value, str), "a docstring comes first"
    for node in rest:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name), ast.unparse(node)
        if node.targets[0].id == "__getattr__":  # old names, by tf_robust_sparse.deprecation
            assert ast.unparse(node.value).startswith("renamed(__name__, {"), ast.unparse(node)
            continue
        # Names, constants and containers of them; no calls, no comprehensions.
        parts = {type(part) for part in ast.walk(node.value)}
        assert parts <= {ast.Dict, ast.List, ast.Tuple, ast.Name, ast.Constant, ast.Load}, ast.unparse(node)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=relative)
def test_all_names_what_is_there_in_order(path):
    module = ast.parse(path.read_text())
    tables = {node.targets[0].id: node.value for node in module.body if isinstance(node, ast.Assign)}
    if "__all__" not in tables:
        assert not [node for node in module.body if isinstance(node, ast.ImportFrom)]
        return
    names = ast.literal_eval(tables["__all__"])
    bound = {
        name.asname or name.name for node in module.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    bound |= set(tables) - {"__all__", "__version__", "__getattr__"}
    bound -= {"renamed", "startup"}  # what serves the import itself
    assert set(names) == bound and len(names) == len(set(names))


CHECK = """
import json, os, sys
import keras, tensorflow
before = set(sys.modules)
environment = dict(os.environ)
import tf_robust_sparse
print(json.dumps({
    "new": sorted(set(sys.modules) - before),
    "environment": dict(os.environ) == environment,
    "legacy": "TF_USE_LEGACY_KERAS" in os.environ,
    "keras": tensorflow.keras.__version__,
}))
"""


def test_importing_the_package_is_light_and_changes_nothing():
    """What TensorFlow and Keras import themselves is not counted."""
    kept = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    run = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, env=kept, cwd=ROOT, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    heavy = [name for name in found["new"] if name.startswith(LAZY)]
    assert heavy == []
    assert found["environment"] and not found["legacy"]
    assert found["keras"].startswith("3.")


def test_the_package_may_be_imported_first_too_and_imports_foolbox_late_and_without_git(tmp_path):
    """In this order too `tf.keras` stays Keras 3, and nothing is printed."""
    code = """
import os, sys
import tf_robust_sparse
tf_robust_sparse.quiet()
tf_robust_sparse.sparsity.schedules.constant(0.1)
import numpy as np
import tensorflow as tf
assert tf.keras.__version__[0] == "3" and "TF_USE_LEGACY_KERAS" not in os.environ
assert not {"foolbox", "tensorflow_model_optimization"} & set(sys.modules)
x = np.eye(4, dtype="float32")
result = tf_robust_sparse.evaluation.foolbox_linf_pgd(
    lambda x: 9 * x, (x, np.arange(4)), num_steps=1, restarts=1, progress=False
)
assert result["robust_accuracy"] == 1 and "foolbox" in sys.modules
"""
    left_out = ("TF_USE_LEGACY_KERAS", "GIT_PYTHON_REFRESH")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    kept["PATH"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", code], env=kept, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""
