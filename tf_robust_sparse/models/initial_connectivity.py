"""The initial connectivity of the layers of small rewired networks.

The published tables cover VGG16, ResNet and WRN. The rule here is similar: more connections at the image and at the
logits, half of the global connectivity in the large layers. Two bounds keep tiny networks useful: the ends never take
so much that the network starts far above its budget, and no layer starts with fewer connections than outputs.
"""


def at_the_ends(connectivity: float) -> float:
    """Returns the initial connectivity of a small first layer or classifier: ten times the global one, at most 0.6."""
    return max(connectivity, min(0.6, 10 * connectivity))


def in_the_middle(connectivity: float, fan_in: int) -> float:
    """Returns half of the global connectivity, but at least one of the `fan_in` possible connections per output."""
    return min(1.0, max(0.5 * connectivity, 1 / fan_in))
