"""Where the connections of a small rewired network start.

The published tables cover VGG16, ResNet and WRN; the rule here is in their spirit: more at the image and at the
logits, half of the global connectivity where the weights are. Two bounds keep a tiny network useful: the ends never
take so much that the network starts far above its budget, and no layer starts with fewer connections than outputs.
"""


def at_the_ends(connectivity: float) -> float:
    """Returns the initial connectivity of a small first layer or classifier: ten times the global one, at most 0.6."""
    return max(connectivity, min(0.6, 10 * connectivity))


def in_the_middle(connectivity: float, fan_in: int) -> float:
    """Returns half of the global connectivity, but at least one connection for each output, of `fan_in` possible."""
    return min(1.0, max(0.5 * connectivity, 1 / fan_in))
