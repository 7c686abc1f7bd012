"""What is measured of the networks of a protocol, and the table and figure of it."""

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tf_robust_sparse as trs
from tf_robust_sparse.cli.hydra.settings import PHASES
from tf_robust_sparse.cli.many_runs import Run
from tf_robust_sparse.evaluation.figures import draw_protocol
from tf_robust_sparse.evaluation.latency import median_durations
from tf_robust_sparse.saving.atomic import replace_file
from tf_robust_sparse.saving.sizes import network_sizes
from tf_robust_sparse.wording import percent_number

TIMED_FOR = 0.5  # seconds
_ON_BOTH = ("TRADES", "MART", "MAT", "RST", "DKL", "CleanAndAdversarial")  # objectives with a term on clean images
_HEAD = ("method", "connections", "clean %", "PGD %", "AutoAttack %", "bytes", "ms", "PFLOP", "minutes", "seeds")


class MethodRun(Run):
    """A run of a method."""

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.name.removesuffix(f", connectivity {self.value}, seed {self.seed}")


def is_evaluated(place: Path) -> bool:
    """Returns whether the evaluation in a directory is finished."""
    file = place / "robustness.json"
    return file.is_file() and not json.loads(file.read_text()).get("unfinished")


def measure(network: keras.Model) -> dict[str, Any]:
    """Returns `bytes` of the compact file, `milliseconds` of one image and on what, and `multiply_adds` if dense.

    Bytes and time are of a network without the channels of closed gates.
    """
    dense = network_sizes(trs.saving.strip(network)).multiply_adds
    if trs.layers.gates(network):
        network = trs.shrink(network).network
    with tempfile.TemporaryDirectory() as folder:
        size = trs.saving.save_compact(network, Path(folder) / "network.trs").stat().st_size
    plain = trs.saving.strip(network)
    x = np.zeros((1, *network.input_shape[1:]), "float32")
    try:
        fast = trs.runtime.compile(network)
        call, by = (lambda: fast(x)), "engine"
    except (ValueError, RuntimeError):  # a layer that the engine does not know, or no engine
        call, by = (lambda: plain(x, training=False)), "TensorFlow"
    seconds = median_durations({"one": call}, TIMED_FOR)["one"]
    return {
        "bytes": size,
        "milliseconds": 1e3 * seconds,
        "timed_on": by,
        "multiply_adds": dense,
    }


def training_flops(results: dict[str, Any], multiply_adds: int) -> float:
    """Estimates the floating-point operations of a training run with dense kernels.

    A forward pass takes two for each multiplication and addition, a backward pass to images or weights as many each. A
    step takes `num_steps` passes forward and back to the images, and one or, with a term on clean images, two forward
    and back to all. The second way back of gates, for their own loss, is left out.
    """
    objective = results.get("objective") or {}
    objective = objective.get("suppressed", objective)
    steps = (objective.get("attack") or {}).get("num_steps", 0)
    passes = 2 * steps + (6 if objective.get("objective") in _ON_BOTH else 3)
    return 2.0 * multiply_adds * passes * results.get("epochs", 0) * results.get("data", {}).get("train", 0)


def measured_row(run: MethodRun, directory: Path) -> dict[str, Any] | None:
    """Returns what is known of an evaluated network of a protocol in `directory`; `None` if it is not evaluated."""
    place = run.final()
    if place is None or not is_evaluated(place):
        return None
    parts = ("results.json", "robustness.json", "size.json")
    results, robustness, size = (json.loads((place / part).read_text()) for part in parts)
    trained = [each for part in (*run.sources(), run.place) for each in _of_all_phases(part)]
    return {
        "method": run.method,
        "value": run.value,
        "seed": run.seed,
        "directory": str(place.relative_to(directory)),
        **{key: results.get(key) for key in ("connectivity", "nonzero", "prunable", "epochs")},
        **{key: robustness[key] for key in ("clean_accuracy", "robust_accuracy", "images", "flags")},
        "attacks": {name: each["robust_accuracy"] for name, each in robustness["attacks"].items()},
        **size,
        "seconds": sum(each.get("seconds") or math.nan for each in trained),
        "training_flops": sum(training_flops(each, size["multiply_adds"]) for each in trained),
    }


def _of_all_phases(place: Path) -> list[dict[str, Any]]:
    files = (place / phase / "results.json" for phase in ("", *PHASES))
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def points(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns means and deviations over the seeds of each method and connectivity, the first row of each seed."""
    by_seed: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in measured:
        by_seed.setdefault((row["method"], row["value"]), {}).setdefault(row["seed"], row)
    return [_point([rows[seed] for seed in sorted(rows)]) for rows in by_seed.values()]


def _point(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in found[0]["attacks"] if all(name in each["attacks"] for each in found)]
    accuracies = {"clean": [each["clean_accuracy"] for each in found]}
    accuracies |= {name: [each["attacks"][name] for each in found] for name in names}
    return {
        "method": found[0]["method"],
        "connectivity": float(np.mean([each["connectivity"] for each in found])),
        "accuracy": {name: float(np.mean(each)) for name, each in accuracies.items()},
        "deviation": {name: float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for name, each in accuracies.items()},
        **{key: float(np.mean([each[key] for each in found])) for key in ("bytes", "milliseconds", "training_flops")},
        "nonzero": round(np.mean([each["nonzero"] for each in found])),
        "seconds": float(np.mean([each["seconds"] for each in found])),
        "timed_on": found[0]["timed_on"],
        "runs": list(found),
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Returns points as a table in Markdown, those with most connections first, and reasons to doubt some of them."""
    rows = sorted(found, key=lambda point: -point["connectivity"])
    lines = [_HEAD, ["---"] * len(_HEAD), *map(_row, rows)]
    doubts = [
        f"- {_name(point)}, seed {run['seed']}: {' '.join(run['flags'])}"
        for point in rows
        for run in point["runs"]
        if run["flags"]
    ]
    doubts = ["", "Reasons for doubt:", "", *doubts] if doubts else []
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *doubts])


def show(record: dict[str, Any], directory: Path) -> None:
    """Writes table and figure, and prints the table."""
    text = table(record["points"])
    with replace_file(directory / "protocol.md") as path:
        path.write_text(text + "\n")
    print(f"\n{record['protocol']['about']}\n\n{text}\n")
    try:
        draw_protocol(record["points"], directory / "protocol.png")
    except ValueError as error:  # without matplotlib there is no figure
        print(f"Note: {error}")
    print(f"Records             {directory}: protocol.json, protocol.md, and a directory for each method")


def _row(point: dict[str, Any]) -> list[str]:
    seeds = len(point["runs"])
    accuracies = [_accuracy(point, name, seeds) for name in ("clean", "pgd", "autoattack")]
    star = "" if point["timed_on"] == "engine" else " (TensorFlow)"
    return [
        point["method"],
        f"{point['nonzero']:,} ({100 * point['connectivity']:.3g} %)",
        *accuracies,
        f"{point['bytes']:,.0f}",
        f"{point['milliseconds']:.3f}{star}",
        f"{point['training_flops'] / 1e15:.3g}",
        f"{point['seconds'] / 60:.1f}",
        str(seeds),
    ]


def _name(point: dict[str, Any]) -> str:
    return f"{point['method']}, {100 * point['connectivity']:.3g} %"


def _accuracy(point: dict[str, Any], name: str, seeds: int) -> str:
    if name not in point["accuracy"]:
        return ""
    spread = f" ± {percent_number(point['deviation'][name])}" if seeds > 1 else ""
    return f"{percent_number(point['accuracy'][name])}{spread}"
