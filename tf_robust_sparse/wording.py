"""Accuracies and other shares as reports, cards and tables print them."""


def per_cent(share: float) -> str:
    """Returns a share in [0, 1] in percent with the sign, for text."""
    return f"{percent_number(share)} %"


def percent_number(share: float) -> str:
    """Returns a share in [0, 1] in percent without the sign, for columns and files that name the unit."""
    return f"{100 * share:.2f}"
