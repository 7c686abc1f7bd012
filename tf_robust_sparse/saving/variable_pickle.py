"""Reads pickles of `tf.Variable` lists without running anything of TensorFlow.

A pickled variable is `functools.partial(ResourceVariable, initial_value=<array>, ...)`, called with no arguments. Here
these names resolve to stand-ins: a variable becomes its initial value, every other name is an error.
"""

import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

from tf_robust_sparse.data import restricted_pickle


def load(path: str | os.PathLike) -> Any:
    """Reads plain containers, NumPy arrays and variables; each variable comes back as its array.

    Raises:
        pickle.UnpicklingError: if the pickle asks for anything else, or is damaged or cut short.
    """
    data = Path(path).read_bytes()
    try:
        for opcode, _, _ in pickletools.genops(data):
            if opcode.name in restricted_pickle._REFUSED_OPCODES:
                what = restricted_pickle._REFUSED_OPCODES[opcode.name]
                raise pickle.UnpicklingError(f"this pickle tries to {what}; only arrays and variables are allowed")
        return restricted_pickle._resolve(_Unpickler(io.BytesIO(data)).load(), set())
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle can fail in any of its opcodes
        raise pickle.UnpicklingError(f"not a complete, plain pickle: {type(error).__name__}: {error}") from error


class _Unpickler(restricted_pickle._Unpickler):
    def find_class(self, module, name):
        stand_in = _STAND_INS.get((module, name))
        return super().find_class(module, name) if stand_in is None else stand_in


class _Partial:
    """Stands in for the call that would create the variable, and returns what the variable would start with."""

    __slots__ = ("_value",)

    def __init__(self, function):
        if function is not _RESOURCE_VARIABLE:
            raise pickle.UnpicklingError("this pickle tries to call something else than a tf.Variable")

    def __setstate__(self, state):
        self._value = state[2]["initial_value"]

    def __call__(self):
        return self._value


def _refuse(*args):
    raise pickle.UnpicklingError("this pickle holds a variable in a form that is not known")


_RESOURCE_VARIABLE = restricted_pickle._Callable(_refuse)
_STAND_INS = {
    ("functools", "partial"): restricted_pickle._Callable(_Partial),
    ("tensorflow.python.ops.resource_variable_ops", "ResourceVariable"): _RESOURCE_VARIABLE,
    ("tensorflow.python.framework.dtypes", "as_dtype"): restricted_pickle._Callable(str),
}
