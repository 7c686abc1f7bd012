"""The public names: few, and all in docs/api.md, which `python -m tests.test_public_api` writes."""

import inspect
import types
from pathlib import Path

import tf_robust_sparse as trs
from tests.conformance import cases

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
# Names, without the namespaces: each is one more that users must know and that must keep working. Methods, which are
# rows of tests/conformance/cases.py, do not count.
MOST = 115
CONSTANTS = {
    "data.DATASETS": "Names of the data sets that `data.load` takes.",
    "layers.KERNELS": "Parametrization -> its dense and convolutional layer.",
    "models.NETWORKS": "Name -> builder, as `models.build` takes them.",
}
HEAD = """# Public names

Everything here is reached from `import tf_robust_sparse as trs`, as `trs.attacks.LinfPGD`. Other names belong to the
toolkit itself and may change without notice. `help(trs.attacks.LinfPGD)` shows arguments, errors, sources and examples.
"""


def namespaces():
    """Name -> the names in it, without those that the top level has too; the top level is `trs`."""
    top = [name for name in trs.__all__ if not inspect.ismodule(getattr(trs, name))]
    shown = {id(getattr(trs, name)) for name in top}
    found = {"trs": top}
    for name in sorted(set(trs.__all__) - set(top)):
        folder = getattr(trs, name)
        found[name] = [each for each in folder.__all__ if id(getattr(folder, each)) not in shown]
    return found


def summary(space, name):
    """The first sentence of the docstring."""
    shown = getattr(trs if space == "trs" else getattr(trs, space), name)
    has_text = isinstance(shown, type | types.FunctionType | types.ModuleType)
    text = inspect.getdoc(shown) if has_text else CONSTANTS[f"{space}.{name}"]
    return " ".join(text.split("\n\n")[0].split())


def page():
    parts = [HEAD]
    for space, names in namespaces().items():
        parts.append(f"## {'Top level' if space == 'trs' else space}\n")
        parts.append("".join(f"- `{name}`: {summary(space, name)}\n" for name in names))
    return "\n".join(parts)


def test_the_page_lists_every_public_name():
    assert PAGE.read_text() == page(), "run python -m tests.test_public_api"


def test_there_are_few_public_names():
    rows = {row.partition(",")[0] for table in vars(cases).values() if isinstance(table, dict) for row in table}
    names = [name for each in namespaces().values() for name in each if name not in rows]
    assert len(names) <= MOST, f"{len(names)} names; import what only the toolkit uses from its module, or raise MOST"


if __name__ == "__main__":
    PAGE.write_text(page())
