"""Old names of the public API, which keep working for one release with a `DeprecationWarning`."""

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def warn(old: str, new: str) -> None:
    """Warns the caller's caller that `old` will go, and names what to use."""
    warnings.warn(f"{old} is deprecated and goes with the next release; use {new}", DeprecationWarning, stacklevel=3)


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a module whose old names still work.

    Args:
        module: `__name__` of the module.
        names: Old name -> new name, dotted if it lives in a module below, as `{"graph": "layer_graph"}`.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        *folders, new = names[name].split(".")
        home = ".".join([module, *folders])
        warn(f"{module}.{name}", f"{home}.{new}")
        return getattr(importlib.import_module(home), new)

    return find


def renamed_arguments(**names: str) -> Callable[[F], F]:
    """Returns a decorator: arguments of a function or method that are given by an old name reach the new one.

    Args:
        names: Old name -> new name.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args, **kwargs):
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise TypeError(f"{function.__qualname__} got both `{new}` and its old name `{old}`")
                    warn(f"{function.__qualname__}({old}=...)", f"{new}=")
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


def renamed_method(old: str, new: str) -> Any:
    """Returns a method for the class body, `old = renamed_method("old", "new")`, that calls `new` with a warning."""

    def call(self, *args, **kwargs):
        warn(f"{type(self).__name__}.{old}", f"{type(self).__name__}.{new}")
        # `super().old` of a method that was adopted means the method before it, not the adopted one again.
        own = (vars(each) for each in type(self).__mro__)
        method = next(each[new] for each in own if new in each and each[new] is not each.get(old))
        return method(self, *args, **kwargs)

    return call


def adopt_old_methods(cls: type, names: Mapping[str, str]) -> None:
    """Lets a subclass that overrides a method by its old name override the new one; for `__init_subclass__`.

    Args:
        cls: The subclass.
        names: Old name -> new name.
    """
    for old, new in names.items():
        if old in vars(cls) and new not in vars(cls):
            warn(f"Overriding {cls.__name__}.{old}", f"{cls.__name__}.{new}")
            setattr(cls, new, vars(cls)[old])
