"""The attacks of the published versions of AutoAttack, and of a quicker one for many classes."""

from typing import Any

from tf_robust_sparse.attacks import APGD, FAB, Square
from tf_robust_sparse.attacks.staged_attack import StagedAttack

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "malt": ("apgd-ce", "apgd-t"),  # not of AutoAttack's authors: three targets, nearest first, for many classes
}
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


def named_attack(name: str, version: str, norm: str, epsilon: float, seed: int) -> StagedAttack:
    """Returns the attack called `name` with its settings in a version of AutoAttack.

    Args:
        name: One of `ATTACKS`.
        version: A key of `VERSIONS`, or `"custom"` for the settings of `"standard"`.
        norm: `"Linf"`, `"L2"` or `"L1"`.
        epsilon: Radius in the norm, in pixels of [0, 1].
        seed: Integer, the seed of all random draws.

    Raises:
        ValueError: if there is no such attack, or an argument is out of its range.

    Reference: `AutoAttack.set_version` of [the authors' code](https://github.com/fra31/auto-attack).
    """
    if name not in ATTACKS:
        raise ValueError(f"`attacks` are names among {', '.join(ATTACKS)}. Received: attack={name!r}")
    common: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "seed": seed}
    restarts = 5 if version == "plus" else 1
    if name.startswith("apgd"):
        # In the authors' code only `standard` shrinks the radius in L1, with more restarts and fewer targets.
        shrinks = norm == "L1" and version not in ("plus", "rand")
        common |= {"shrinking_radius": shrinks, "eot_samples": 20 if version == "rand" else 1}
        if name == "apgd-t":
            if version == "malt":
                return APGD(**common, loss="targeted-dlr", num_targets=3, target_order="malt")
            return APGD(**common, loss="targeted-dlr", num_targets=5 if shrinks else 9)
        return APGD(**common, loss=name.removeprefix("apgd-"), restarts=5 if shrinks else restarts)
    if name.startswith("fab"):
        return FAB(**common, targeted=name == "fab-t", restarts=1 if name == "fab-t" else restarts)
    return Square(**common)
