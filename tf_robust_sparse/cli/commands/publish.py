"""Packs a trained and measured network with its model card, for others to load; uploads both if asked.

    python run_scripts/run_robustness_eval.py --network=saved_models/quickstart --data=fashion_mnist_sample \\
        --epsilon=0.1 --attacks=clean,pgd,autoattack --test_examples=1000
    python run_scripts/run_publish.py --network=saved_models/quickstart --name=fashion-small-cnn-0.1 \\
        --output_dir=saved_models/published

The first command leaves `robustness.json` in the directory of the run, which the second one reads, as it reads the
results of `run_certify.py` there. It writes `NAME.trs`, the network with its connections alone; `NAME.json`, what is
known of it; and `README.md`, the card for people. --repo_id=USER/MODEL uploads the directory to the Hugging Face hub,
for which `huggingface_hub` must be installed and logged in.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, networks, run_directory, settings
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.networks import Kind
from tf_robust_sparse.cli.sections.latency import Target
from tf_robust_sparse.cli.sections.run import Output
from tf_robust_sparse.cli.sections.source import Source
from tf_robust_sparse.cli.settings import like, setting
from tf_robust_sparse.pretrained import model_card
from tf_robust_sparse.saving.atomic import replace_file
from tf_robust_sparse.saving.compact import COMPACT_SUFFIX

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_KEPT = ("images", "norm", "epsilon", "clean_accuracy", "robust_accuracy", "flags", "command", "seed")
_CERTIFIED = ("method", "images", "norm", "epsilon", "verified_accuracy", "clean_accuracy")
_LIMITS = (
    "Robust accuracies are upper bounds: a better attack may break more images. They hold for the ball, the data and "
    "the images named here, and say nothing of other changes or of images of another kind."
)


@dataclasses.dataclass
class Publication(Source):
    """The network, and what its card says in addition to what was measured."""

    network: str | None = like(Source, "network", help="The network to publish, the directory of a finished run.")
    name: str | None = setting(None, "Name, of small letters, digits, dots, hyphens and underscores.")
    license: str = setting("Apache-2.0", "License of the weights, as SPDX names it.")
    limits: str = setting(_LIMITS, "What the card says of limits.")
    repo_id: str | None = setting(None, "Model on the Hugging Face hub, USER/MODEL, that the directory is uploaded to.")

    def check(self) -> None:
        """Checks the name."""
        if not _NAME.fullmatch(self.name or ""):
            raise BadFlag(f"--name={self.name}: expected small letters, digits, dots, hyphens and underscores")
        if self.repo_id is not None and self.repo_id.count("/") != 1:
            raise BadFlag(f"--repo_id={self.repo_id}: expected USER/MODEL")


@dataclasses.dataclass
class Place(Target):
    """Where to write."""

    output_dir: str | None = like(Output, "output_dir", help="The directory to write to.")
    overwrite: bool = like(Output, "overwrite", help="Replace the files of this name in the directory.")


def define() -> None:
    """Defines the flags."""
    Publication.define(needed=("network", "name"))
    Place.define(needed=("output_dir",))


def main() -> None:
    """Packs, writes, uploads."""
    settings.check()
    chosen, target = Publication.read(), Place.read()
    if networks.kind(chosen.path) is not Kind.RUN or not (chosen.path / "results.json").is_file():
        raise BadFlag(f"--network={chosen.network}: expected the directory of a finished run, with its results.json")
    hub = _hub() if chosen.repo_id else None
    directory = target.place(chosen.path)
    files = [directory / f"{chosen.name}{suffix}" for suffix in (COMPACT_SUFFIX, ".json")] + [directory / "README.md"]
    there = [file for file in files if file.exists()]
    if there and not target.overwrite:
        raise BadFlag(f"--output_dir={target.output_dir} holds {there[0].name}; pass --overwrite to replace it")
    network = chosen.load()
    run_directory.check_directory("output_dir", directory)
    directory.mkdir(parents=True, exist_ok=True)
    with command_line.about("network"):
        trs.saving.save_compact(network, files[0])
    _compare(network, files[0])
    card = make_card(chosen, network, files[0])
    run_directory.write_json(files[1], card)
    with replace_file(files[2]) as temporary:
        temporary.write_text(model_card(card))
    for file in files:
        print(f"{file.stat().st_size:9,d} bytes  {file}")
    if not card["evaluation"]:
        print("The card has no robust accuracy: run trs eval first, which writes robustness.json into the run")
    if hub is not None:
        hub.create_repo(chosen.repo_id, exist_ok=True)
        print(f"Uploaded            {hub.upload_folder(repo_id=chosen.repo_id, folder_path=str(directory))}")


def make_card(chosen: Publication, network: Any, file: Path) -> dict[str, Any]:
    """Returns what is known of the network, ready for JSON; see `trs.pretrained_card`."""
    results = _read(chosen.path / "results.json")
    measured = _read(chosen.path / "robustness.json")
    record = chosen.path / "run.flags"
    lines = record.read_text().splitlines() if record.is_file() else []
    objective, sparsifier = results.get("objective") or {}, results.get("sparsifier") or {}
    return {
        "name": chosen.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "bytes": file.stat().st_size,
        "model": results.get("model"),
        "input_shape": [int(length) for length in network.input_shape[1:]],
        "data": {"name": results["data"]["name"]},
        "license": chosen.license,
        **networks.weight_facts(network),
        "training": {
            "objective": objective.get("objective", "natural training"),
            "sparsifier": sparsifier.get("sparsifier"),
            **{key: results.get(key) for key in ("epochs", "seed", "seconds")},
            "flags": [line for line in lines if line.startswith("--") and not line.startswith("--data_dir")],
        },
        "evaluation": None
        if not measured or measured.get("unfinished")
        else {
            **{key: measured.get(key) for key in _KEPT},
            "attacks": {name: found["robust_accuracy"] for name, found in measured["attacks"].items()},
        },
        "certified": [
            {key: found.get(key) for key in _CERTIFIED}
            for found in map(_read, sorted(chosen.path.glob("certified_*.json")))
            if "verified_accuracy" in found
        ],
        "limits": chosen.limits,
        "versions": results.get("versions", {}),
    }


def _compare(network: Any, file: Path) -> None:
    x = np.random.default_rng(0).random((8, *network.input_shape[1:]), "float32")
    before, after = (np.asarray(each(x, training=False)) for each in (network, trs.load_network(file)))
    if not np.array_equal(before, after):
        raise RuntimeError(f"The logits of {file} differ from those of the run; report this")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise BadFlag(f"--network: {path} is damaged: {error}") from error


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise BadFlag("--repo_id needs huggingface_hub: python -m pip install 'tf_robust_sparse[hub]'") from error
    return huggingface_hub
