"""How scores are learned: where they are moved to while their loss is taken."""

import dataclasses

import tf_robust_sparse as trs
from tf_robust_sparse.cli.settings import Settings, setting


@dataclasses.dataclass
class Sharpness(Settings):
    """Scores that are moved to where the loss is larger."""

    title = "Sharpness of scores"

    s2ap_gamma: float = setting(
        0.0,
        "Learn scores at the worst scores nearby (S2AP): length of the move as a share of each kernel's scores.",
        identity=True,
    )

    def around(self, objective: trs.objectives.Objective) -> trs.objectives.Objective:
        """Returns the objective at moved scores, or as it is."""
        return trs.objectives.S2AP(objective, self.s2ap_gamma) if self.s2ap_gamma else objective
