"""The numbers of an evaluation as the tables of its report."""

import math
from typing import Any, NamedTuple

from tf_robust_sparse.evaluation.leaderboard import radius
from tf_robust_sparse.wording import per_cent


class Table(NamedTuple):
    """A table of words.

    Attributes:
        title: Heading.
        head: Names of the columns.
        rows: Cells by row, as many as there are columns.
    """

    title: str
    head: list[str]
    rows: list[list[str]]


def interval(accuracy: float, images: int) -> tuple[float, float]:
    """Returns the 95 % interval of Wilson around an accuracy in [0, 1] that was measured on `images` images."""
    z = 1.959964
    middle = (accuracy + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(accuracy * (1 - accuracy) / images + z * z / (4 * images**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def with_interval(accuracy: float, images: int) -> str:
    """Returns an accuracy and its 95 % interval in words."""
    low, high = interval(accuracy, images)
    return f"{per_cent(accuracy)} ({100 * low:.1f} to {100 * high:.1f})"


def facts(results: dict[str, Any]) -> Table:
    """Returns what was evaluated on what, as far as it is known."""
    data, file = results.get("data", {}), results.get("file", {})
    left = results.get("weights", {})
    connections = None
    if left.get("prunable"):
        connections = f"{left['nonzero']:,} of {left['prunable']:,} ({per_cent(left['nonzero'] / left['prunable'])})"
        if 0 < left.get("dense", 0) < left["nonzero"]:
            connections += f", {left['dense']:,} of them in kernels that are dense"
    found = {
        "network": results.get("network"),
        "sha256": file.get("sha256"),
        "size": f"{file['bytes']:,} bytes" if file else None,
        "connections": connections,
        "images": f"{results['images']:,} of {data['name']}" if data else f"{results['images']:,}",
        "origin of the images": data.get("origin"),
        "ball": ball(results).removeprefix(", ") or None,
        "chance level": per_cent(1 / results["num_classes"]) if results.get("num_classes") else None,
        "date": results.get("date"),
        "seed": results.get("seed"),
        "time": f"{results['seconds']:.0f} s" if "seconds" in results else None,
        "command": results.get("command"),
        "versions": ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items()) or None,
    }
    return Table("What was measured", ["", ""], [[name, str(v)] for name, v in found.items() if v is not None])


def ball(results: dict[str, Any]) -> str:
    """Returns the ball around each image in words, if all attacks have the same one."""
    known = [results] if "norm" in results else results["attacks"].values()
    balls = {(each["norm"], each["epsilon"]) for each in known if "norm" in each}
    named = {f", {norm[:1].upper()}{norm[1:]} ball of radius {radius(norm, epsilon)}" for norm, epsilon in balls}
    return named.pop() if len(named) == 1 else ""


def attacks(results: dict[str, Any]) -> Table:
    """Returns accuracies and costs of all attacks and their parts."""
    images = results["images"]
    clean = with_interval(results["clean_accuracy"], images)
    rows = [["clean", clean, per_cent(results["clean_accuracy"]), "", "", "", ""]]
    for name, found in results["attacks"].items():
        rows.append([name, *_numbers(found, images)])
        rows += [[f"{name}: {part}", *_numbers(each, images)] for part, each in found.get("attacks", {}).items()]
    head = ["attack", "accuracy (95 % interval)", "worst case so far", "broken", "broken by no other"]
    return Table("Accuracy", [*head, "gradients per image", "seconds"], rows)


def _numbers(found: dict[str, Any], images: int) -> list[str]:
    worst = per_cent(found["worst_case_accuracy"]) if "worst_case_accuracy" in found else ""
    counts = [str(found.get("broken", "")), str(found.get("broken_by_no_other", ""))]
    gradients, seconds = f"{found['gradient_passes_per_image']:.1f}", f"{found['seconds']:.1f}"
    return [with_interval(found["robust_accuracy"], images), worst, *counts, gradients, seconds]


def curves(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns all that was measured at more than one radius, by a name that says what it is."""
    found = {}
    if "security_curve" in results:
        each = results["security_curve"]
        name = each["attack"].removeprefix(each["norm"])
        found[f"{name}-{each['num_steps']}, restarts: {each['restarts']}"] = each
    for each in results["attacks"].values():
        if "points" in each:
            found[f"{each['attack']}-{each['num_steps']}"] = each
    return found


def curve(name: str, found: dict[str, Any]) -> Table:
    """Returns about ten points of a curve."""
    points = found["points"]
    some = points[:: max(len(points) // 10, 1)]
    rows = [[radius(found["norm"], point["epsilon"]), per_cent(point["robust_accuracy"])] for point in some]
    return Table(name, ["epsilon", "accuracy"], rows)


def corruptions(found: dict[str, Any]) -> Table:
    """Returns accuracies by corruption and severity."""
    severities = [str(severity) for severity in found["severities"]]
    rows = [
        [name, each["source"], per_cent(each["accuracy"])]
        + [per_cent(each["accuracy_at_severity"][severity]) for severity in severities]
        for name, each in found["corruptions"].items()
    ]
    rows.append(["mean", "", per_cent(found["mean_corruption_accuracy"]), *([""] * len(severities))])
    head = ["corruption", "source", "accuracy", *(f"severity {severity}" for severity in severities)]
    return Table("Common corruptions", head, rows)


def foolbox(found: dict[str, Any]) -> Table:
    """Returns how Foolbox' attacks compare with ours."""
    head = ["attack of Foolbox", "accuracy", "images it alone breaks", "images our PGD alone breaks"]
    rows = [
        [name, per_cent(each["robust_accuracy"])]
        + [str(len(each[key])) for key in ("broken_by_foolbox_only", "broken_by_ours_only")]
        for name, each in found.items()
    ]
    return Table("Foolbox", head, rows)
