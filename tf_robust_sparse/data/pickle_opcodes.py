"""Executes the opcodes of a pickle that builds plain data, within bounds of size, nesting and work.

Python's own unpickler trusts its input: one opcode can make it allocate gigabytes for an index, shared tuples can make
it hash for years, and deep ones overflow the stack. Here every value is created by code of this file.
"""

import collections
import pickle
import pickletools
from collections.abc import Callable, Mapping, Sized
from typing import Any, NoReturn

import numpy as np

ONLY = "only plain containers and NumPy arrays are allowed, and the file may be malicious; save the data as .npz"

_REFUSED = {
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "import from the extension registry"),
    **dict.fromkeys(("PERSID", "BINPERSID"), "load a persistent id"),
    **dict.fromkeys(("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"), "make an instance of a class"),
    **dict.fromkeys(("NEXT_BUFFER", "READONLY_BUFFER"), "read an out-of-band buffer"),
}
_PLAIN = (str, bytes, int, float, complex, type(None), np.generic)
DEEPEST = 100  # nesting of containers
_LONGEST_INTEGER = 8192  # bits, because the time of a hash grows with them
_LARGEST_KEY = 100  # entries of a tuple, including nested ones
_MOST_TUPLE_KEYS = 10_000  # equal hashes, which can be forged, make a dictionary quadratic
_OVERHEAD: dict[type, int] = {list: 56, dict: 64, set: 216, tuple: 48}  # approximate bytes of an empty one
_PER_ITEM: dict[type, int] = {list: 8, dict: 100, set: 60, tuple: 8}
_NESTED = 240  # bytes of the bookkeeping for a tuple in a tuple


class Budget:
    """Limits the bytes that a file may allocate by its size; plain data takes a few times its size in memory."""

    def __init__(self, size: int) -> None:
        self.limit = 32 * size + (1 << 24)
        self._left = self.limit

    def spend(self, amount: int) -> None:
        """Subtracts `amount` from the budget.

        Raises:
            pickle.UnpicklingError: if the budget is exceeded.
        """
        self._left -= amount
        if self._left < 0:
            refuse(f"this pickle holds instructions for more than {self.limit} bytes")


class StandIn:
    """The value that a name in a pickle resolves to: it can be called, but neither changed nor inspected.

    Args:
        function: The function to call; its arguments come from the file and must be checked.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class Unfinished:
    """A value that a pickle creates in two steps; the second one fills it."""

    def fill(self, state: Any) -> None:
        """Sets the state, which comes from the file and must be checked."""
        raise NotImplementedError


SET, FROZENSET, ORDERED = StandIn(set), StandIn(frozenset), StandIn(collections.OrderedDict)
_OF_ITEMS = (SET, FROZENSET, ORDERED)


def refuse(what: str) -> NoReturn:
    """Raises a `pickle.UnpicklingError` that names what the pickle does and what is allowed."""
    raise pickle.UnpicklingError(f"{what}; {ONLY}")


def short(value: Any) -> str:
    """Returns a value in a few characters; for a container, whose items may repeat endlessly, only the type."""
    return f"{value!r:.40}" if isinstance(value, (str, bytes, int, float)) else type(value).__name__


def execute(data: bytes, encoding: str, names: Mapping[tuple[str, str], StandIn], budget: Budget) -> Any:
    """Returns the value of a pickle, which may contain stand-ins and unfinished values.

    Args:
        data: The pickle.
        encoding: How strings of Python 2 are decoded, or `"bytes"`.
        names: Stand-in of each allowed `(module, name)`.
        budget: Limits the containers that are built.

    Raises:
        pickle.UnpicklingError: if an opcode does something that plain data does not need.
        Exception: of any kind, if the pickle is damaged.
    """
    machine = _Machine(encoding, names, budget)
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _REFUSED:
            refuse(f"this pickle tries to {_REFUSED[opcode.name]} ({opcode.name} {argument!r:.60})")
        machine.opcodes += 1
        if opcode.name == "STOP":
            return machine.pop()
        _ACTIONS[opcode.name](machine, argument)
    raise ValueError("no end")


class _Machine:
    """The stack and the memo. An opcode that finds too few values on the stack raises an `IndexError`."""

    def __init__(self, encoding: str, names: Mapping[tuple[str, str], StandIn], budget: Budget) -> None:
        self.opcodes = 0
        self._encoding, self._names, self._budget = encoding, names, budget
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stack below each mark
        self._memo: list[Any] = []
        self._tuple_keys = 0
        self._heights: dict[int, tuple[tuple, int]] = {}  # nesting of tuples that contain tuples, by identity

    def pop(self) -> Any:
        return self._stack.pop()

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def drop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.to_mark()

    def integer(self, value: int) -> None:
        if value.bit_length() > _LONGEST_INTEGER:
            refuse(f"this pickle holds an integer of {value.bit_length()} bits")
        self.push(value)

    def string(self, text: str) -> None:
        data = text.encode("latin1")  # as it is in the file
        self.push(data if self._encoding == "bytes" else data.decode(self._encoding))

    def remember(self, index: int | None) -> None:
        index = len(self._memo) if index is None else index
        if not 0 <= index <= self.opcodes:  # each index belongs to a value, which takes at least one opcode
            raise ValueError(f"place {index} after {self.opcodes} opcodes")
        self._memo.extend([None] * (index + 1 - len(self._memo)))
        self._memo[index] = self._stack[-1]

    def recall(self, index: int) -> None:
        if index < 0:
            raise ValueError(f"place {index}")
        self.push(self._memo[index])

    def tuple_of(self, items: list[Any]) -> None:
        self._charge(tuple, len(items))
        made = tuple(items)
        inner = [self._heights.get(id(item), (item, 1))[1] for item in items if type(item) is tuple]
        if inner:
            height = 1 + max(inner)
            if height > DEEPEST:
                refuse(f"this pickle nests more than {DEEPEST} tuples")
            self._budget.spend(_NESTED)
            self._heights[id(made)] = (made, height)  # keeps `made` alive, so its id is not reused
        self.push(made)

    def new(self, kind: type) -> None:
        self._charge(kind, 0)
        self.push(kind())

    def append(self, items: list[Any]) -> None:
        target = self._target(list)
        self._charge(list, len(items), is_new=False)
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self._target(dict, collections.OrderedDict)
        if len(items) % 2:
            raise ValueError("a key without a value")
        self._check_keys(dict, items[::2])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def add_items(self, items: list[Any]) -> None:
        target = self._target(set)
        self._check_keys(set, items)
        target.update(items)

    def frozen(self, items: list[Any]) -> None:
        self._charge(set, 0)
        self._check_keys(set, items)
        self.push(frozenset(items))

    def global_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        if (module, name) not in self._names:
            refuse(f"this pickle tries to import {module:.80}.{name:.80}")
        self.push(self._names[module, name])

    def call(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, StandIn) or type(arguments) is not tuple:
            refuse(f"this pickle tries to call a {type(function).__name__}")
        if function in _OF_ITEMS:
            self.push(self._container(function, *arguments))
            return
        self._budget.spend(_length(arguments))
        self.push(function.function(*arguments))

    def build(self, _: Any) -> None:
        state, target = self.pop(), self._stack[-1]
        if isinstance(target, Unfinished):
            self._budget.spend(_length(state))
            target.fill(state)
        elif isinstance(target, StandIn):
            refuse("this pickle tries to change one of its constructors")
        elif type(target) is not collections.OrderedDict:  # its attributes, such as those of PyTorch, are ignored
            refuse(f"this pickle tries to set the state of a {type(target).__name__}")

    def _container(self, made: StandIn, items: Any = None) -> Any:
        items = [] if items is None else items
        if type(items) not in (list, tuple):
            raise ValueError(f"expected a list of items, received {type(items).__name__}")
        if made is ORDERED:
            if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in items):
                raise ValueError("expected pairs of a key and a value")
            self._charge(dict, 0)
            self._check_keys(dict, [pair[0] for pair in items])
        else:
            self._charge(set, 0)
            self._check_keys(set, items)
        return made.function(items)

    def _target(self, *kinds: type) -> Any:
        if type(self._stack[-1]) not in kinds:
            raise ValueError(f"items for a {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def _charge(self, kind: type, items: int, is_new: bool = True) -> None:
        self._budget.spend(_OVERHEAD[kind] * is_new + _PER_ITEM[kind] * items)

    def _check_keys(self, kind: type, keys: list[Any] | tuple[Any, ...]) -> None:
        """Refuses keys whose hash is slow or deeply nested, before it is computed."""
        self._charge(kind, len(keys), is_new=False)
        for key in keys:
            rest, entries = [key], 0
            while rest:
                item = rest.pop()
                if type(item) is tuple:
                    entries += len(item) + 1
                    if entries > _LARGEST_KEY:
                        refuse(f"this pickle holds a key of more than {_LARGEST_KEY} entries")
                    rest.extend(item)
                elif not isinstance(item, _PLAIN):
                    refuse(f"this pickle holds a key of type {type(item).__name__}")
                elif isinstance(item, int) and not -(2**63) <= item < 2**64:
                    refuse("this pickle holds a key of more than 64 bits")
            self._tuple_keys += type(key) is tuple
        if self._tuple_keys > _MOST_TUPLE_KEYS:
            refuse(f"this pickle holds more than {_MOST_TUPLE_KEYS} tuples as keys")


def _length(values: Any) -> int:
    """Returns the number of bytes that a call may copy."""
    if type(values) is not tuple:
        return 0
    return sum(len(each) * (1 if isinstance(each, (bytes, str)) else 8) for each in values if isinstance(each, Sized))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.global_name(module, name)


def _last(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.tuple_of(items[::-1])

    return make


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _new_dict(machine: _Machine, _: Any) -> None:
    items = machine.to_mark()
    machine.new(dict)
    machine.set_items(items)


def _new_list(machine: _Machine, _: Any) -> None:
    items = machine.to_mark()
    machine.new(list)
    machine.append(items)


def _duplicate(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.push(value)
    machine.push(value)


_INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(_INTEGERS, _Machine.integer),
    **dict.fromkeys((*_TEXTS, *_BYTES, "FLOAT", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.string),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": lambda machine, _: [machine.to_mark()].clear(),
    "DUP": _duplicate,
    "EMPTY_TUPLE": _last(0),
    "TUPLE1": _last(1),
    "TUPLE2": _last(2),
    "TUPLE3": _last(3),
    "TUPLE": lambda machine, _: machine.tuple_of(machine.to_mark()),
    "EMPTY_LIST": lambda machine, _: machine.new(list),
    "LIST": _new_list,
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "EMPTY_DICT": lambda machine, _: machine.new(dict),
    "DICT": _new_dict,
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "EMPTY_SET": lambda machine, _: machine.new(set),
    "ADDITEMS": lambda machine, _: machine.add_items(machine.to_mark()),
    "FROZENSET": lambda machine, _: machine.frozen(machine.to_mark()),
    "GLOBAL": lambda machine, names: machine.global_name(*names.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
