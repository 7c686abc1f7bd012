"""Rows for public leaderboards of robust networks."""

from typing import Any

from tf_robust_sparse.wording import percent_number

FULL_TEST_SETS = {"cifar10": 10_000, "cifar100": 10_000}
UNRELIABLE = ("randomised", "batch_dependent", "softmax", "masked_gradients", "zero_gradient", "out_of_order")


def robustbench_row(results: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    """Returns one entry of RobustBench's `model_info/<dataset>/<norm>/<model>.json`.

    Args:
        results: Results of an evaluation with AutoAttack: `norm`, `epsilon`, `images`, `clean_accuracy`,
            `robust_accuracy`, `attacks["autoattack"]["robust_accuracy"]` and `flag_names`.
        description: Facts about the network: `dataset`, `architecture`, and, if known, `link`, `name`,
            `authors`, `venue`, `additional_data`.

    Returns:
        The entry. Accuracies are text in percent; `reported` is the worst case over all attacks of this evaluation.
        `unreliable` follows from the flags. There is a `footnote` if fewer images were used than the leaderboard asks
        for, or another version than the standard one. Unknown facts are empty strings.

    Raises:
        ValueError: if AutoAttack was not run.

    Reference: [Croce et al., 2021](https://arxiv.org/abs/2010.09670).
    """
    auto_attack = _auto_attack(results)
    row: dict[str, Any] = {
        "link": description.get("link") or "",
        "name": description.get("name") or "",
        "authors": description.get("authors") or "",
        "additional_data": bool(description.get("additional_data")),
        "number_forward_passes": 1,
        "dataset": description["dataset"],
        "venue": description.get("venue") or "",
        "architecture": description.get("architecture") or "",
        "eps": radius(results["norm"], results["epsilon"]),
        "clean_acc": percent_number(results["clean_accuracy"]),
        "reported": percent_number(results["robust_accuracy"]),
        "autoattack_acc": percent_number(auto_attack["robust_accuracy"]),
        "unreliable": any(name in UNRELIABLE for name in results["flag_names"]),
    }
    notes = []
    if results["images"] != FULL_TEST_SETS.get(description["dataset"], results["images"]):
        notes.append(f"Measured on the first {results['images']} test images.")
    if auto_attack["version"] != "standard":
        notes.append(f"AutoAttack in its version {auto_attack['version']}.")
    return {**row, "footnote": " ".join(notes)} if notes else row


def pruning_benchmark_row(results: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    """Returns one network's entry for the Adversarial Pruning Benchmark: its model key and its results.

    Args:
        results: See `robustbench_row`.
        description: `dataset`, `architecture`, and, if known, `method` and `connectivity` (in (0, 1]).

    Returns:
        `model_key` with `ap_method`, `architecture`, `dataset`, `structure` and `sparsity_rate` (percentage of
        removed weights, as text); `epsilon` and `norm` used; `clean_accuracy` and `robust_accuracy_aa` in
        percent, as text, as is `robust_accuracy_hofmn`, or `None` if HO-FMN was not run (as `hofmn`).

    Raises:
        ValueError: if AutoAttack was not run.

    Reference: [Piras et al., 2024](https://arxiv.org/abs/2409.01249).
    """
    connectivity, tuned = description.get("connectivity"), results["attacks"].get("hofmn")
    return {
        "model_key": {
            "ap_method": description.get("method") or "",
            "architecture": description.get("architecture") or "",
            "dataset": description["dataset"].upper(),
            "structure": "weights",
            "sparsity_rate": "" if connectivity is None else f"{100 * (1 - connectivity):.4g}",
        },
        "norm": results["norm"],
        "epsilon": radius(results["norm"], results["epsilon"]),
        "images": results["images"],
        "clean_accuracy": percent_number(results["clean_accuracy"]),
        "robust_accuracy_aa": percent_number(_auto_attack(results)["robust_accuracy"]),
        "robust_accuracy_hofmn": None if tuned is None else percent_number(tuned["robust_accuracy"]),
    }


def radius(norm: str, epsilon: float) -> str:
    """Returns a radius as text: `8/255` for an Linf radius of whole levels, unless decimals are short, as in `0.2`."""
    levels = round(255 * epsilon)
    whole = norm.lower() == "linf" and levels > 0 and abs(levels / 255 - epsilon) < 1e-9
    whole = whole and float(f"{epsilon:.3g}") != epsilon
    return f"{levels}/255" if whole else f"{epsilon:.6g}"


def _auto_attack(results: dict[str, Any]) -> dict[str, Any]:
    try:
        return results["attacks"]["autoattack"]
    except KeyError:
        raise ValueError(
            f"Leaderboards need AutoAttack; run it too. Received: the attacks {', '.join(results['attacks'])}"
        ) from None
