"""How connections are chosen: the sparsifiers by name, and the settings of each."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.settings import OnlyFor, Settings, setting
from tf_robust_sparse.sparsity.blocks import POOLINGS
from tf_robust_sparse.sparsity.channel_magnitude import CRITERIA
from tf_robust_sparse.sparsity.flying_bird import GROWTHS
from tf_robust_sparse.sparsity.n_m import LARGEST_GROUP

FLAGS = flags.FLAGS


class Kind(NamedTuple):
    """A sparsifier.

    Attributes:
        kernel: The parametrization it needs.
        allocations: Values of --allocation that it takes, its default first.
    """

    kernel: str
    allocations: tuple[str, ...] = ("uniform",)


_BY_SIZE = Kind("masked", ("uniform", "global"))
_FIXED_OR_MOVING = Kind("masked", ("erk", "uniform", "igq"))
_FLYING = Kind("masked", ("igq", "erk", "uniform"))
SPARSIFIERS = {
    "none": Kind("plain"),
    "connectivity_sampling": Kind("rewiring"),
    "magnitude": _BY_SIZE,
    "channel_magnitude": _BY_SIZE,
    "block": _BY_SIZE,
    "static": _FIXED_OR_MOVING,
    "set": _FIXED_OR_MOVING,
    "rigl": _FIXED_OR_MOVING,
    "flying_bird": _FLYING,
    "flying_bird_plus": _FLYING,
    "n_m": Kind("masked"),
    "obs": Kind("masked", ("uniform", "erk", "igq")),
}
_PRUNING = ("magnitude", "channel_magnitude", "block")
_BIRDS = ("flying_bird", "flying_bird_plus")
_MOVING = ("set", "rigl", *_BIRDS)


def _of(*names: str) -> OnlyFor:
    return OnlyFor(f"--sparsifier={' or '.join(names)}", lambda flags: chosen() in names, refuse=True)


@dataclasses.dataclass
class Sparsity(Settings):
    """Which sparsifier, and how sparse."""

    title = "Network"

    sparse_train: bool = setting(False, "Train sparse from the first step, by --sparsifier.", short_name="s")
    sparsifier: str | None = setting(
        None,
        "How connections are chosen; by default connectivity_sampling with --sparse_train and none without.",
        choices=SPARSIFIERS,
    )
    connectivity: float = setting(
        0.01,
        "Fraction of the kernel entries kept, 0.01 is 99 % sparse; of channels with --sparsifier=channel_magnitude.",
        upper=1,
        excluded=0,
        aliases=("pc",),
        identity=True,
        only_for=OnlyFor("a sparse network, --sparse_train or --sparsifier=NAME", lambda _: chosen() != "none", True),
    )

    @property
    def name(self) -> str:
        """The sparsifier that the settings stand for."""
        return self.sparsifier or ("connectivity_sampling" if self.sparse_train else "none")

    @property
    def kernel(self) -> str:
        """The parametrization it needs."""
        return SPARSIFIERS[self.name].kernel

    @property
    def degree(self) -> str:
        """How sparse the network is, for the name of a run."""
        if self.name == "n_m":
            return Groups.read().n_m.replace(":", "of")
        return "" if self.name == "none" else repr(self.connectivity)

    def check(self) -> None:
        """Checks that the settings agree."""
        if self.sparse_train and self.sparsifier == "none":
            raise BadFlag("--sparse_train asks for a sparse network and --sparsifier=none for a dense one; drop one")


@dataclasses.dataclass
class ConnectivitySampling(Settings):
    """Of connectivity sampling."""

    title = "Connectivity sampling"
    _only = _of("connectivity_sampling")

    noise_scaling: float = setting(
        1e-6, "Standard deviation of the noise, in units of the learning rate.", only_for=_only
    )
    l1: float = setting(0.0, "Strength of the L1 prior, in units of the learning rate.", only_for=_only)
    dormant_policy: str = setting(
        "freeze",
        "Whether dormant entries stay at zero, or drift as in DEEP R's code.",
        choices=("freeze", "reference"),
        identity=True,
        only_for=_only,
    )
    init_policy: str = setting(
        "reference",
        "Connections at the start: as many as DEEP R's code draws, or exactly the budget.",
        choices=("reference", "exact"),
        identity=True,
        only_for=_only,
    )
    layer_prior: str = setting(
        "size",
        "Layers grow by their size, or by their share at the start.",
        choices=("size", "target"),
        identity=True,
        only_for=_only,
    )


@dataclasses.dataclass
class Pruning(Settings):
    """Of pruning by size, and the allocation that others have too."""

    title = "Magnitude pruning"
    _only = _of(*_PRUNING)

    pruning_schedule: str = setting(
        "polynomial",
        "Prune gradually, or at once.",
        choices=("polynomial", "one_shot"),
        identity=True,
        only_for=_only,
    )
    pruning_begin: float = setting(
        0.0, "When pruning begins, as a fraction of all steps.", upper=1, excluded=1, identity=True, only_for=_only
    )
    pruning_end: float = setting(
        0.5, "When pruning ends, as a fraction of all steps.", upper=1, excluded=0, identity=True, only_for=_only
    )
    pruning_frequency: int = setting(100, "Steps between two prunings.", lower=1, identity=True, only_for=_only)
    allocation: str | None = setting(
        None,
        "Connections of each kernel: the same fraction (uniform), the largest of all kernels (global), Erdos-Renyi "
        "kernels (erk), or igq; the choice and the default depend on --sparsifier.",
        choices=dict.fromkeys(name for kind in SPARSIFIERS.values() for name in kind.allocations),
        identity=True,
        only_for=_of(*(name for name, kind in SPARSIFIERS.items() if len(kind.allocations) > 1)),
    )
    pruning_criterion: str = setting(
        "kernel",
        "Size of channels by their kernel, or by the scale of their batch norm.",
        choices=CRITERIA,
        identity=True,
        only_for=_of("channel_magnitude"),
    )
    block: str = setting(
        "1x16", "Sides of a block: consecutive inputs x consecutive outputs.", identity=True, only_for=_of("block")
    )
    block_pooling: str = setting(
        "mean",
        "Size of a block by the mean of its absolute weights, or by the largest one.",
        choices=POOLINGS,
        identity=True,
        only_for=_of("block"),
    )

    @classmethod
    def settle(cls) -> None:
        """Takes the sparsifier's own allocation."""
        if FLAGS.allocation is None:
            FLAGS["allocation"].value = SPARSIFIERS[chosen()].allocations[0]

    def check(self) -> None:
        """Checks the order of begin and end, the block and the allocation."""
        name = chosen()
        if name in _PRUNING and not self.pruning_begin < self.pruning_end:
            raise BadFlag(
                f"--pruning_begin={self.pruning_begin:g}: expected less than --pruning_end={self.pruning_end:g}"
            )
        if name == "block":
            self.sides()
        allowed = SPARSIFIERS[name].allocations
        if self.allocation not in allowed and name != "none":
            raise BadFlag(
                f"--allocation={self.allocation} does not fit --sparsifier={name}; "
                f"pass --allocation={' or '.join(allowed)}"
            )

    def sides(self) -> tuple[int, int]:
        """Returns inputs and outputs of a block.

        Raises:
            BadFlag: if they are not like 1x16.
        """
        rows, _, columns = self.block.partition("x")
        if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
            raise BadFlag(f"--block={self.block}: expected inputs x outputs, such as 1x16")
        return int(rows), int(columns)

    def schedule(self, connectivity: float, total_steps: int) -> Callable[[Any], Any] | None:
        """Returns the course of the connectivity over the steps; `None` to prune at once."""
        if self.pruning_schedule == "one_shot":
            return None
        begin = int(self.pruning_begin * total_steps)
        end = max(begin + 1, int(self.pruning_end * total_steps))
        # The last pruning must fall on the end, where the target is reached.
        frequency = max(1, min(self.pruning_frequency, end - begin))
        end = begin + (end - begin) // frequency * frequency
        return trs.sparsity.schedules.polynomial(connectivity, end, begin_step=begin, frequency=frequency)


@dataclasses.dataclass
class Moving(Settings):
    """Of connections that move."""

    title = "Connections that move (set, rigl, flying_bird, flying_bird_plus)"

    move_interval: int | None = setting(
        None,
        "Steps between two updates of the connections; by default 100, for flying_bird 900 and later 1,200.",
        lower=1,
        identity=True,
        only_for=_of(*_MOVING),
    )
    drop_fraction: float | None = setting(
        None,
        "Share of the connections that move at first; by default 0.3, for flying_bird 0.5.",
        upper=1,
        identity=True,
        only_for=_of(*_MOVING),
    )
    growth: str = setting(
        "gradient",
        "Where connections grow: where the gradient is largest, or anywhere.",
        choices=GROWTHS,
        identity=True,
        only_for=_of(*_BIRDS),
    )
    adapt_from: float = setting(
        0.5,
        "When the number of connections begins to follow robust overfitting, as a fraction of all epochs.",
        upper=1,
        identity=True,
        only_for=_of("flying_bird_plus"),
    )
    move_end: float = setting(
        0.75,
        "When connections stop moving, as a fraction of all steps.",
        upper=1,
        excluded=0,
        identity=True,
        only_for=_of("set", "rigl"),
    )


@dataclasses.dataclass
class Groups(Settings):
    """Of N:M sparsity."""

    title = "N:M sparsity"
    _only = _of("n_m")

    n_m: str = setting(
        "2:4",
        "Keep the N largest of every M consecutive weights of an output.",
        identity=True,
        only_for=_only,
    )
    n_m_decay: float = setting(
        2e-4, "How fast the weights that are turned off shrink (SR-STE).", identity=True, only_for=_only
    )
    n_m_fixed: bool = setting(False, "Keep the initial connections.", identity=True, only_for=_only)

    @classmethod
    def settle(cls) -> None:
        """Derives the connectivity from N and M."""
        if chosen() == "n_m":
            n, m = cls.read().numbers()
            FLAGS["connectivity"].value = n / m

    def numbers(self) -> tuple[int, int]:
        """Returns N and M.

        Raises:
            BadFlag: if they are not like 2:4, or --connectivity disagrees.
        """
        n, _, m = self.n_m.partition(":")
        if not (n.isdecimal() and m.isdecimal() and 1 <= int(n) < int(m) <= LARGEST_GROUP):
            raise BadFlag(
                f"--n_m={self.n_m}: expected N:M such as 2:4, with N less than M and M at most {LARGEST_GROUP}"
            )
        if FLAGS["connectivity"].present and FLAGS.connectivity != int(n) / int(m):
            raise BadFlag(
                f"--connectivity={FLAGS.connectivity:g} does not match --n_m={self.n_m}, which keeps "
                f"{int(n) / int(m):g}; leave it out"
            )
        return int(n), int(m)


@dataclasses.dataclass
class OneShot(Settings):
    """Of pruning a trained network at once."""

    title = "One-shot pruning (obs)"

    obs_images: int = setting(
        512,
        "Number of training images, attacked as in training, on which the outputs of each layer are to stay as they "
        "are.",
        lower=1,
        identity=True,
        only_for=_of("obs"),
    )
    source_net: str | None = setting(
        None,
        "Directory of a finished run of the same --model, or its network.keras, with whose weights training begins; "
        "--sparsifier=obs prunes them.",
    )

    def check(self) -> None:
        """Checks that there is a network to prune."""
        if chosen() == "obs" and not (self.source_net or FLAGS.load_model):
            raise BadFlag("--sparsifier=obs prunes a trained network; pass --source_net=DIR, a run of the same --model")


GROUPS: Sequence[type[Settings]] = (ConnectivitySampling, Pruning, Moving, Groups, OneShot)


def chosen() -> str:
    """Returns the name of the sparsifier on the command line."""
    return Sparsity.read().name


def build(
    total_steps: int, epochs: int, seed: int, images: Callable[[], np.ndarray] | None = None
) -> trs.sparsity.Sparsifier | None:
    """Returns the sparsifier of the command line, `None` for a dense network.

    Args:
        total_steps: Training steps of the whole run.
        epochs: Epochs of the whole run.
        seed: Of all its draws.
        images: Returns those that obs prunes by.
    """
    common, pruning, moving = Sparsity.read(), Pruning.read(), Moving.read()
    name, connectivity = common.name, common.connectivity
    allocation = pruning.allocation or SPARSIFIERS[name].allocations[0]
    if name == "connectivity_sampling":
        return trs.sparsity.ConnectivitySampling(
            connectivity, **dataclasses.asdict(ConnectivitySampling.read()), seed=seed
        )
    if name in _PRUNING:
        schedule = pruning.schedule(connectivity, total_steps)
        if name == "magnitude":
            return trs.sparsity.MagnitudePruning(connectivity, schedule, allocation)
        if name == "channel_magnitude":
            return trs.sparsity.ChannelMagnitudePruning(connectivity, schedule, allocation, pruning.pruning_criterion)
        return trs.sparsity.BlockPruning(connectivity, pruning.sides(), pruning.block_pooling, schedule, allocation)
    if name == "n_m":
        groups = Groups.read()
        return trs.sparsity.NM(*groups.numbers(), decay=groups.n_m_decay, fixed=groups.n_m_fixed)
    settings: dict[str, Any] = {"allocation": allocation, "seed": seed}
    if name == "static":
        return trs.sparsity.SET(connectivity, drop_fraction=0.0, **settings)
    if name == "obs":
        return trs.sparsity.OBS(images() if images else None, connectivity, **settings)
    given = {"interval": moving.move_interval, "drop_fraction": moving.drop_fraction}
    settings |= {key: value for key, value in given.items() if value is not None}
    if name in ("set", "rigl"):
        kind = {"set": trs.sparsity.SET, "rigl": trs.sparsity.RigL}[name]
        return kind(connectivity, end_step=max(1, int(moving.move_end * total_steps)), **settings)
    if name in _BIRDS:
        if moving.move_interval is not None:
            settings["late_interval"] = moving.move_interval * 4 // 3
        settings |= {"end_step": total_steps, "growth": moving.growth}
        if name == "flying_bird":
            return trs.sparsity.FlyingBird(connectivity, **settings)
        return trs.sparsity.FlyingBirdPlus(connectivity, start_epoch=int(moving.adapt_from * epochs), **settings)
    return None
