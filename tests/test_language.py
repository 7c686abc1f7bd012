"""Phrases, spellings and retired names that must not come back; reads files only."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folders and files that are checked.
CHECKED = [
    *("README.md", "CONTRIBUTING.md", "benchmarks", "docs/README.md", "docs/any_model.md", "docs/data.md"),
    *("docs/adding_a_sparsifier.md", "docs/adding_an_objective.md", "docs/coming_from_tfmot.md", "docs/glossary.md"),
    *("docs/files.md", "docs/resuming.md", "docs/several_machines.md", "docs/shrinking.md"),
    *("tf_robust_sparse/paths.py", "tf_robust_sparse/schedules.py"),
    *("tf_robust_sparse/data", "tf_robust_sparse/layers", "tf_robust_sparse/models", "tf_robust_sparse/runtime"),
    *("tf_robust_sparse/saving", "tf_robust_sparse/sparsity", "tf_robust_sparse/attacks", "tf_robust_sparse/certify"),
    *("tf_robust_sparse/evaluation", "tf_robust_sparse/objectives", "tf_robust_sparse/training", "docs/evaluation.md"),
    *("docs/certificates.md", "docs/binary_subnetworks.md", "docs/neural_pruning.md", "docs/lottery_tickets.md"),
    *("docs/hydra.md",),
]
# Pattern -> what to write.
PATTERNS = {
    r"Received: (?:it|other ones|another one|both|none)\b": "the received value",
    r"\b[Tt]ells whether\b": "Returns whether",
    r"\banew\b": "again, new",
    r"\bis told by\b": "a plain verb",
    r"(?<!--)\bbeside\b": "next to, in addition to, other than",
    r"\b[Ww]hoever\b": "the subject itself",
    r"\bwhat is missing\b": "the missing values",
    r"\b\w*(?:normal|initial|optim|minim|maxim|random|linear|material|penal|regular)is(?:e[ds]?|ing|ation)\b": "-ize",
    r"\b\w*(?:colour|neighbour|behaviour|favour)\w*\b": "-or",
    r"\b(?:[Cc]entre[ds]?|[Gg]rey|\w*[Ll]abelled|[Ll]earnt|[Cc]atalogue|[Dd]efence|[Ll]icence)\b": "American",
    r"\b(?:settled_kernels|inference_kernels|settled_for_inference|moved_images|ready_made)\b": "the new name",
    r"\bkernel forms?\b|\bkernel_form\b": "parametrization",
}
# Names of flags and keys in results files never change.
KEYS = re.compile(r'["`](?:randomised|penalised)["`]')
# Lines that serve old names by `tf_robust_sparse.deprecation`.
ALIAS = re.compile(r'^\s+"\w+": "[\w.]+",$|renamed_|adopt_old_methods')


def files():
    for name in CHECKED:
        path = ROOT / name
        yield from [path] if path.is_file() else sorted([*path.rglob("*.py"), *path.rglob("*.md")])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_texts_avoid(pattern):
    found = []
    for path in files():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if (match := re.search(pattern, KEYS.sub("", line))) and not ALIAS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]!r}")
    assert not found, f"write {PATTERNS[pattern]}: {found}"


def test_every_checked_place_exists():
    assert all((ROOT / name).exists() for name in CHECKED)
