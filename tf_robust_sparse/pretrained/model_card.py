"""The card of a network for people, and the table of many."""

from collections.abc import Iterable
from typing import Any

from tf_robust_sparse.wording import per_cent

_HEAD = ["network", "connections", "bytes", "clean", "PGD", "AutoAttack", "verified"]


def model_card(card: dict[str, Any]) -> str:
    """Returns the card of a network as Markdown, with the header that the Hugging Face hub reads.

    Args:
        card: As `pretrained_card` returns it.
    """
    weights, evaluation, training = card["weights"], card.get("evaluation"), card["training"]
    share = weights["nonzero"] / weights["prunable"]
    lines = [
        "---",
        f"license: {card['license'].lower()}",
        "library_name: keras",
        "pipeline_tag: image-classification",
        "tags: [adversarial-robustness, sparsity, tf_robust_sparse]",
        "---",
        "",
        f"# {card['name']}",
        "",
        f"`{card['model']}` for {card['data']['name']}, images {tuple(card['input_shape'])} in [0, 1] to logits. "
        f"{weights['nonzero']:,} of {weights['prunable']:,} connections ({per_cent(share)}), "
        f"{card['bytes']:,} bytes.",
        "",
        "```python",
        "import tf_robust_sparse as trs",
        "",
        f'network = trs.load_network("{card["name"]}.trs")',
        "```",
        "",
        "## Measured",
        "",
    ]
    if evaluation:
        lines += [
            f"On {evaluation['images']:,} test images, {evaluation['norm']} ball of radius "
            f"{evaluation['epsilon']:.6g}:",
            "",
            "| attack | accuracy |",
            "|---|---|",
            f"| none | {per_cent(evaluation['clean_accuracy'])} |",
            *(f"| {name} | {per_cent(found)} |" for name, found in evaluation["attacks"].items()),
            f"| all together | {per_cent(evaluation['robust_accuracy'])} |",
            "",
            *(f"Reason for doubt: {sentence}\n" for sentence in evaluation["flags"]),
        ]
        lines += [f"`{evaluation['command']}`", ""] if evaluation.get("command") else []
    else:
        lines += ["Not evaluated.", ""]
    for found in card["certified"]:
        lines += [
            f"Verified by {found['method']} on {found['images']:,} images, {found['norm']} ball of radius "
            f"{found['epsilon']:.6g}: {per_cent(found['verified_accuracy'])}.",
            "",
        ]
    seconds = f", {training['seconds']:.0f} seconds" if training.get("seconds") else ""
    lines += [
        "## Training",
        "",
        f"{training['objective']}, {training['sparsifier'] or 'no sparsifier'}, {training['epochs']} epochs, seed "
        f"{training['seed']}{seconds}, with these flags:",
        "",
        "```",
        *training["flags"],
        "```",
        "",
        "## Limits",
        "",
        card["limits"],
        "",
    ]
    return "\n".join(lines)


def card_table(cards: Iterable[dict[str, Any]]) -> str:
    """Returns a Markdown table with a line for each card."""
    rows = [_HEAD, ["---"] * len(_HEAD), *map(_row, cards)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(card: dict[str, Any]) -> list[str]:
    weights, evaluation = card["weights"], card.get("evaluation") or {}
    attacks = evaluation.get("attacks", {})
    verified = [per_cent(found["verified_accuracy"]) for found in card["certified"]]
    return [
        f"`{card['name']}`",
        f"{weights['nonzero']:,} ({100 * weights['nonzero'] / weights['prunable']:.3g} %)",
        f"{card['bytes']:,}",
        per_cent(evaluation["clean_accuracy"]) if evaluation else "",
        *(per_cent(attacks[name]) if name in attacks else "" for name in ("pgd", "autoattack")),
        ", ".join(verified),
    ]
