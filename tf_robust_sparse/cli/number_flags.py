"""Flags that are numbers or fractions such as 8/255, one or several, within bounds."""

import fractions
from typing import Any

from absl import flags


class Number(flags.ArgumentParser):
    """Parses `0.1`, `1e-3` or `8/255` in `[lower, upper]`, without the value `excluded`."""

    syntactic_help = "a number or a fraction such as 8/255"
    kind = "A number"

    def __init__(
        self, lower: float = -float("inf"), upper: float = float("inf"), excluded: float | None = None
    ) -> None:
        self.lower, self.upper, self.excluded = lower, upper, excluded

    def parse(self, argument: Any) -> Any:
        """Returns the number as a float."""
        text = str(argument).strip()
        try:
            value = float(fractions.Fraction(text)) if "/" in text else float(text)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f"expected {self.syntactic_help}") from None
        if not self.lower <= value <= self.upper or value in (self.excluded, float("inf")):
            raise ValueError(f"expected a number {self.range()}")
        return value

    def range(self) -> str:
        """Returns the bounds in words."""
        if self.upper == float("inf"):
            return f"above {self.lower:g}" if self.excluded == self.lower else f"of at least {self.lower:g}"
        left = "(" if self.excluded == self.lower else "["
        right = ")" if self.excluded == self.upper else "]"
        return f"in {left}{self.lower:g}, {self.upper:g}{right}"

    def flag_type(self) -> str:
        """Returns the name of the type."""
        return "number"


class Numbers(Number):
    """Parses `2/255,4/255`, each within the bounds."""

    syntactic_help = "numbers or fractions such as 2/255,8/255"
    kind = "Numbers"

    def parse(self, argument: Any) -> Any:
        """Returns the numbers as floats."""
        one = Number(self.lower, self.upper, self.excluded)
        return [one.parse(part) for part in (argument if isinstance(argument, list) else str(argument).split(","))]

    def flag_type(self) -> str:
        """Returns the name of the type."""
        return "numbers"


class Serializer(flags.ArgumentSerializer):
    """Writes numbers as they are read."""

    def serialize(self, value: float | list[float]) -> str:
        """Returns 8/255 rather than 0.03137254901960784."""
        if isinstance(value, list):
            return ",".join(map(self.serialize, value))
        level = f"{round(value * 255)}/255"
        return level if len(repr(value)) > len(level) + 4 and float(fractions.Fraction(level)) == value else repr(value)
