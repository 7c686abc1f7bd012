"""Flags of how connections are chosen, and which of them belong to which sparsifier."""

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag, define_number, section

FLAGS = flags.FLAGS

SPARSIFIERS = {  # -> kernel form
    "none": "plain",
    "connectivity_sampling": "rewiring",
    "magnitude": "masked",
    "channel_magnitude": "masked",
    "block": "masked",
    "static": "masked",
    "set": "masked",
    "rigl": "masked",
    "flying_bird": "masked",
    "flying_bird_plus": "masked",
    "n_m": "masked",
    "obs": "masked",
}
_MAGNITUDE = ("pruning_schedule", "pruning_begin", "pruning_end", "pruning_frequency", "allocation")
_MOVING = ("move_interval", "drop_fraction", "move_end", "allocation")
_FLYING_BIRD = ("move_interval", "drop_fraction", "allocation", "growth")
SPARSIFIER_FLAGS = {
    "connectivity_sampling": ("noise_scaling", "l1", "dormant_policy", "init_policy", "layer_prior"),
    "magnitude": _MAGNITUDE,
    "channel_magnitude": (*_MAGNITUDE, "pruning_criterion"),
    "block": (*_MAGNITUDE, "block", "block_pooling"),
    "static": ("allocation",),
    "set": _MOVING,
    "rigl": _MOVING,
    "flying_bird": _FLYING_BIRD,
    "flying_bird_plus": (*_FLYING_BIRD, "adapt_from"),
    "n_m": ("n_m", "n_m_decay", "n_m_fixed"),
    "obs": ("obs_images", "allocation"),
}
_ALLOCATIONS = {
    **dict.fromkeys(("magnitude", "channel_magnitude", "block"), ("uniform", "global")),
    **dict.fromkeys(("static", "set", "rigl"), ("erk", "uniform", "igq")),
    **dict.fromkeys(("flying_bird", "flying_bird_plus"), ("igq", "erk", "uniform")),
    "obs": ("uniform", "erk", "igq"),
}


@section("Connectivity sampling")
def _define_connectivity_sampling() -> None:
    define_number("noise_scaling", 1e-6, "Standard deviation of the noise, in units of the learning rate.")
    define_number("l1", 0.0, "Strength of the L1 prior, in units of the learning rate.")
    flags.DEFINE_enum(
        "dormant_policy",
        "freeze",
        ["freeze", "reference"],
        "Dormant entries rest, or drift as in the original.",
    )
    flags.DEFINE_enum(
        "init_policy", "reference", ["reference", "exact"], "Connections at the start: the original's, or the budget."
    )
    flags.DEFINE_enum(
        "layer_prior",
        "size",
        ["size", "target"],
        "Layers grow by their size, or by their share at the start.",
    )


@section("Magnitude pruning")
def _define_magnitude_pruning() -> None:
    flags.DEFINE_enum("pruning_schedule", "polynomial", ["polynomial", "one_shot"], "Prune gradually, or at once.")
    define_number("pruning_begin", 0.0, "Where pruning begins, as a fraction of all steps.", 0, 1, excluded=1)
    define_number("pruning_end", 0.5, "Where pruning ends, as a fraction of all steps.", 0, 1, excluded=0)
    flags.DEFINE_integer("pruning_frequency", 100, "Steps between two prunings.", 1)
    flags.DEFINE_enum(
        "allocation",
        None,
        list(dict.fromkeys(name for names in _ALLOCATIONS.values() for name in names)),
        "Connections of each kernel. Magnitude pruning: the same fraction (uniform, its default), or the largest of "
        "all kernels (global). static, set, rigl: erk (Erdos-Renyi kernels), uniform or igq; flying_bird: igq first; "
        "obs: uniform first.",
    )
    flags.DEFINE_enum(
        "pruning_criterion",
        "kernel",
        list(trs.sparsity.CRITERIA),
        "Of --sparsifier=channel_magnitude: size of channels by their kernel, or by the scale of their batch norm.",
    )
    flags.DEFINE_string("block", "1x16", "Of --sparsifier=block: consecutive inputs by consecutive outputs.")
    flags.DEFINE_enum(
        "block_pooling",
        "mean",
        list(trs.sparsity.POOLINGS),
        "Of --sparsifier=block: size of a block by the mean of its absolute weights, or by the largest one.",
    )


@section("Connections that move (set, rigl, flying_bird, flying_bird_plus)")
def _define_moving() -> None:
    flags.DEFINE_integer(
        "move_interval",
        None,
        "Steps between two updates of the connections: 100, of flying_bird 900 and later 1,200.",
        1,
    )
    define_number("drop_fraction", None, "Share of the connections that move at first: 0.3, of flying_bird 0.5.", 0, 1)
    flags.DEFINE_enum(
        "growth", "gradient", list(trs.sparsity.GROWTHS), "Of flying_bird: where the gradient is largest, or anywhere."
    )
    define_number(
        "adapt_from",
        0.5,
        "Of flying_bird_plus: from where on the number of connections follows robust overfitting, as a fraction of all "
        "epochs.",
        0,
        1,
    )
    define_number("move_end", 0.75, "Where connections come to rest, as a fraction of all steps.", 0, 1, excluded=0)


@section("N:M sparsity")
def _define_n_m() -> None:
    flags.DEFINE_string("n_m", "2:4", "Of every M consecutive inputs an output reads the N of largest weight.")
    define_number("n_m_decay", 2e-4, "How fast weights that are off shrink (SR-STE).", 0)
    flags.DEFINE_bool("n_m_fixed", False, "Keep the connections of the start.")


@section("One-shot pruning (obs)")
def _define_obs() -> None:
    flags.DEFINE_integer(
        "obs_images",
        512,
        "Of --sparsifier=obs: number of training images, attacked as in training, on which the outputs of each layer "
        "are to stay as they are.",
        1,
    )
    flags.DEFINE_string(
        "source_net",
        None,
        "Directory of a finished run of the same --model, or its network.keras, with whose weights training begins; "
        "--sparsifier=obs prunes them.",
    )


def define() -> None:
    """Defines the flags of all sparsifiers."""
    _define_connectivity_sampling()
    _define_magnitude_pruning()
    _define_moving()
    _define_n_m()
    _define_obs()


def n_m() -> tuple[int, int]:
    """Returns N and M of --n_m.

    Raises:
        BadFlag: if it is not like 2:4, or --connectivity disagrees.
    """
    n, _, m = FLAGS.n_m.partition(":")
    if not (n.isdecimal() and m.isdecimal() and 1 <= int(n) < int(m) <= trs.sparsity.LARGEST_GROUP):
        raise BadFlag(
            f"--n_m={FLAGS.n_m}: expected N:M such as 2:4, with N less than M and M at most "
            f"{trs.sparsity.LARGEST_GROUP}"
        )
    if FLAGS["connectivity"].present and FLAGS.connectivity != int(n) / int(m):
        raise BadFlag(
            f"--connectivity={FLAGS.connectivity:g} does not match --n_m={FLAGS.n_m}, which keeps "
            f"{int(n) / int(m):g}; leave it out"
        )
    return int(n), int(m)


def block() -> tuple[int, int]:
    """Returns the sides of --block.

    Raises:
        BadFlag: if it is not like 1x16.
    """
    rows, _, columns = FLAGS.block.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise BadFlag(f"--block={FLAGS.block}: expected inputs x outputs, such as 1x16")
    return int(rows), int(columns)


def sparsifier_name() -> str:
    """Returns the sparsifier that --sparsifier and --sparse_train stand for."""
    if "sparsifier" not in FLAGS:
        return "none"
    return FLAGS.sparsifier or ("connectivity_sampling" if FLAGS.sparse_train else "none")


def degree() -> str:
    """Returns how sparse the network is, for the name of a run."""
    name = sparsifier_name()
    if name == "n_m":
        return FLAGS.n_m.replace(":", "of")
    return "" if name == "none" else repr(FLAGS.connectivity)


def settled() -> list[str]:
    """Returns the names of the flags of the chosen sparsifier, or of learnt scores, that --resume cannot change."""
    if "sparsifier" not in FLAGS:
        return ["allocation"]
    return [name for name in SPARSIFIER_FLAGS.get(sparsifier_name(), ()) if name not in ("noise_scaling", "l1")]


def flags_of_others() -> list[str]:
    """Returns the names of the flags of sparsifiers that the chosen one does not use."""
    own = SPARSIFIER_FLAGS.get(sparsifier_name(), ())
    return list(dict.fromkeys(name for names in SPARSIFIER_FLAGS.values() for name in names if name not in own))


def check() -> None:
    """Checks that flags and the sparsifier go together, and settles the default of --allocation.

    Raises:
        BadFlag: naming the flags that do not.
    """
    name = sparsifier_name()
    if name in ("magnitude", "channel_magnitude", "block") and not FLAGS.pruning_begin < FLAGS.pruning_end:
        raise BadFlag(
            f"--pruning_begin={FLAGS.pruning_begin:g}: expected less than --pruning_end. "
            f"Received: --pruning_end={FLAGS.pruning_end:g}"
        )
    if name == "n_m":
        n, m = n_m()
        FLAGS["connectivity"].value = n / m
    if name == "block":
        block()
    if name == "obs" and not (FLAGS.source_net or FLAGS.load_model):
        raise BadFlag(
            "--sparsifier=obs prunes a trained network; pass --source_net=DIR, a finished run of the same --model. "
            "Received: none"
        )
    if name == "flying_bird_plus" and (FLAGS.objective == "natural" or FLAGS.validation_examples == 0):
        raise BadFlag(
            "--sparsifier=flying_bird_plus watches robust accuracy in training and validation; pass --objective=at, "
            "trades or mart, and no --validation_examples=0. Received: "
            f"--objective={FLAGS.objective}, --validation_examples={FLAGS.validation_examples}"
        )
    for flag in flags_of_others():
        if FLAGS[flag].present:
            owners = " or ".join(sparsifier for sparsifier, names in SPARSIFIER_FLAGS.items() if flag in names)
            raise BadFlag(f"--{flag} belongs to --sparsifier={owners}. Received: --sparsifier={name}")
    allowed = _ALLOCATIONS.get(name, ("uniform",))
    if FLAGS.allocation is None:
        FLAGS["allocation"].value = allowed[0]
    if FLAGS.allocation not in allowed:
        raise BadFlag(
            f"--allocation={FLAGS.allocation} does not fit --sparsifier={name}; "
            f"pass --allocation={' or '.join(allowed)}"
        )
