"""Integer arguments of sparsifiers and schedules."""

import numbers
from typing import Any


def check_integer(name: str, value: Any, least: int, what: str = "an integer") -> int:
    """Returns `value` as an int.

    Raises:
        ValueError: if it is no integer or less than `least`; the message contains `name` and `what`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"`{name}` must be {what}, at least {least}. Received: {name}={value!r}")
    return int(value)


def check_seed(seed: Any) -> int:
    """Returns `seed` as an int.

    Raises:
        ValueError: if it is no integer in [0, 2**31).
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= int(seed) < 2**31:
        raise ValueError(f"`seed` must be an integer in [0, 2**31). Received: seed={seed!r}")
    return int(seed)
