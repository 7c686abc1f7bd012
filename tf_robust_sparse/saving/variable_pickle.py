"""Reads pickles of `tf.Variable` lists without running TensorFlow code.

A pickled variable is `functools.partial(ResourceVariable, initial_value=<array>, ...)`, called without arguments. Here
these names resolve to stand-ins: a variable becomes its initial value, and every other name is an error.
"""

import os
import pickle
from typing import Any

from tf_robust_sparse.data import restricted_pickle
from tf_robust_sparse.data.pickle_opcodes import StandIn, Unfinished


def load(path: str | os.PathLike) -> Any:
    """Reads plain containers, NumPy arrays and variables; each variable is returned as its array.

    Raises:
        pickle.UnpicklingError: if the pickle contains anything else, or is damaged or truncated.
    """
    return restricted_pickle.load(path, stand_ins=_STAND_INS)


class _Partial(StandIn, Unfinished):
    """Replaces the call that would create a variable, and returns the initial value of the variable."""

    def __init__(self, function: Any) -> None:
        if function is not _RESOURCE_VARIABLE:
            raise pickle.UnpicklingError("this pickle tries to call something other than tf.Variable")
        super().__init__(self._initial_value)
        self._value: Any = None

    def fill(self, state: Any) -> None:
        """Stores the function, arguments, keywords and attributes of the call."""
        self._value = state[2]["initial_value"]

    def _initial_value(self) -> Any:
        return self._value


def _refuse(*args):
    raise pickle.UnpicklingError("this pickle holds a variable in an unknown form")


_RESOURCE_VARIABLE = StandIn(_refuse)
_STAND_INS = {
    ("functools", "partial"): StandIn(_Partial),
    ("tensorflow.python.ops.resource_variable_ops", "ResourceVariable"): _RESOURCE_VARIABLE,
    ("tensorflow.python.framework.dtypes", "as_dtype"): StandIn(str),
}
