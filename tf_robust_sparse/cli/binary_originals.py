"""Names and configurations of the published code of binary sub-networks; `translate` turns them into our flags.

A flag on the command line, or in a flagfile, wins over the same setting of --config, and that over the default. An
attack is one setting: `--attack=name=PGD,step_size=2,threshold=8,iter_num=10` replaces the whole one of the file.
"""

import itertools
from pathlib import Path
from typing import Any

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import settings_file
from tf_robust_sparse.cli.command_line import BadFlag, BadInput, define_aliases, is_direct, section

FLAGS = flags.FLAGS

DEPTHS = (18, 34, 50, 101, 152)
MODELS = {
    **{f"cResNet{depth}{data}": f"resnet{depth}" for depth in DEPTHS for data in ("", "_cifar100")},
    **{f"ResNet{depth}_imagenet100": f"resnet{depth}_imagenet" for depth in DEPTHS},
    **{
        f"ResNet{depth}_001_{widths}{data}": f"resnet{depth}_{widths}"
        for depth, all_widths in ((18, ("p01", "p1")), (34, ("p0", "p01", "p05", "p1")), (50, ("p01", "p1")))
        for widths in all_widths
        for data in ("", "_cifar100")
    },
    **{f"ResNet{depth}_001_p01_imagenet100": f"resnet{depth}_p01_imagenet" for depth in (18, 34)},
}
DATA = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet100": "imagenet100"}
_NORMALIZE = {"imagenet100": "imagenet"}
_ATTACK_NAMES = {"attack": ("pgd", "fgsm-rs"), "eval_attack": ("pgd",), "trades_attack": ("tradeskl",)}
_ATTACK_FLAGS = {  # what a setting of an attack stands for
    "attack": {"threshold": "epsilon", "step_size": "step_size", "iter_num": "num_steps"},
    "trades_attack": {"threshold": "epsilon", "step_size": "step_size", "iter_num": "num_steps"},
    "eval_attack": {"threshold": "val_epsilon", "step_size": "val_step_size", "iter_num": "val_num_steps"},
}
# Flags of the original that change nothing here, and why.
_HARMLESS = {
    "workers": "the input pipeline takes as many threads as it needs",
    "print_freq": "progress is shown by epochs",
}
# Flags of the original that cannot be served, each with the value that changes nothing and what to do instead.
_REFUSED: dict[str, tuple[Any, str]] = {
    "subset": ("test", "test images; --select chooses among epochs by held-out ones"),
    "start_epoch": ("0", "--resume, which goes on after the last finished epoch"),
    "dampening": (0.0, "0, because no configuration has another one"),
    "file": (None, "run_mask_plots.py --network=FILE"),
}
_ELSEWHERE = ("log_dir", "multigpu", "subset", *_HARMLESS)
_OTHER_NAMES = {"lr": "learning_rate", "num_classes": "n_classes"}


def define() -> None:
    """Defines the configuration file and the other spellings."""
    _define_spellings()
    _define_refused()


@section("As the original says it")
def _define_spellings() -> None:
    flags.DEFINE_string("config", None, "YAML file of the original; flags win over what it says.")
    flags.DEFINE_string("model_type", None, "--model, or the original's name of one.")
    flags.DEFINE_string("dataset", None, "--data, or the original's name of it.")
    flags.DEFINE_string(
        "model_name",
        None,
        "Name of the run, which is written to LOG_DIR/CONFIG/NAME/prune_rate=RATE/TRIAL; LOG_DIR is that of --log_dir, "
        "of --config, or runs. Each run gets the next trial; --resume goes on with the last one.",
    )
    for name, what in (
        ("attack", "Training attack, name=PGD or FGSM-RS"),
        ("eval_attack", "Attack on held-out images, name=PGD"),
        ("trades_attack", "Attack of adv_trades, name=TradesKL"),
    ):
        flags.DEFINE_string(name, None, f"{what},step_size=2,threshold=8,iter_num=10; numbers from 1 on are 255ths.")
    define_aliases({"num_classes": "n_classes", "a": "model_type", "evaluate": "load_model", "e": "load_model"})


@section("Of the original, and without use here")
def _define_refused() -> None:
    flags.DEFINE_string("multigpu", None, "GPUs that train together, such as 0,1; as --strategy=mirrored on these.")
    for name, reason in _HARMLESS.items():
        flags.DEFINE_string(name, None, f"Changes nothing, because {reason}.")
    for name, (_, instead) in _REFUSED.items():
        flags.DEFINE_string(name, None, f"Use {instead}.")
    define_aliases({"j": "workers", "p": "print_freq"})


def translate() -> None:
    """Reads --config and sets our flags by those of the original, before any check.

    Raises:
        BadFlag: if both are given, or a setting is not known.
        BadInput: if the file cannot be read.
    """
    settings = _from_file(Path(FLAGS.config).expanduser()) if FLAGS.config else {}
    attacks = {name: settings.pop(name, None) for name in _ATTACK_FLAGS}
    for name, value in settings.items():
        if name not in _ELSEWHERE:
            _set(name, value)
    for name, reason in _HARMLESS.items():
        if FLAGS[name].value is not None:
            print(f"Note: --{name}={FLAGS[name].value} changes nothing, because {reason}")
            FLAGS[name].value = None
    for name, (harmless, instead) in _REFUSED.items():
        given = FLAGS[name].value
        if given is not None and str(given) != str(harmless) and not _is_number(given, harmless):
            raise BadFlag(f"--{name}={given} is a setting of the published code that is not supported; use {instead}")
    for theirs, ours, names in (("model_type", "model", MODELS), ("dataset", "data", DATA)):
        given = FLAGS[theirs].value
        if given is None or (FLAGS[ours].present and not FLAGS[theirs].present):
            continue
        value = names.get(given if theirs == "model_type" else str(given).lower(), given)
        if FLAGS[ours].present and FLAGS[ours].value != value:
            raise BadFlag(f"--{theirs}={given} and --{ours}={FLAGS[ours].value} say the same; pass one. Received: both")
        if ours == "model" and value not in FLAGS["model"].parser.enum_values:
            raise BadFlag(f"--model_type={given}: expected one of {', '.join(MODELS)}. Received: another one")
        FLAGS[ours].value = value
    if FLAGS.trainer == "default":
        FLAGS["trainer"].value = "adv_step"
    for name in _ATTACK_FLAGS:
        # What attacks belong to the trainer: TRADES attacks by its own, the other one is on held-out images then.
        text = FLAGS[name].value
        found = _parsed(name, text) if text is not None else attacks[name]
        if found is None:
            continue
        if name == "trades_attack" and FLAGS.trainer != "adv_trades":
            print(
                f"Note: trades_attack changes nothing, because it belongs to --trainer=adv_trades, not {FLAGS.trainer}"
            )
            continue
        _set_attack(name, found, on_command_line=text is not None)
    if FLAGS.log_dir and not FLAGS.model_name:
        raise BadFlag("--log_dir is the folder of --model_name; pass --model_name=NAME with it, or --output_dir=DIR")
    if FLAGS.model_name:
        if FLAGS.output_dir:
            raise BadFlag("--output_dir and --model_name both say where to write; pass one. Received: both")
        FLAGS.output_dir = str(_trial(settings.get("log_dir")))


def forget() -> None:
    """Unsets what `translate` has said in our words, which is what is recorded."""
    for name in (*_ATTACK_FLAGS, "model_name", "model_type", "dataset"):
        FLAGS[name].value = None


def _trial(log_dir: str | None) -> Path:
    """Returns the directory of the run: the first trial that is free, or the last one where a run goes on."""
    if FLAGS.strategy == "multi_worker":
        raise BadFlag(
            "--model_name counts trials, which every worker would do by itself; pass --output_dir=DIR with "
            "--strategy=multi_worker"
        )
    config = [Path(FLAGS.config).stem] if FLAGS.config else []
    parent = Path(FLAGS.log_dir or log_dir or "runs", *config, FLAGS.model_name, f"prune_rate={FLAGS.prune_rate}")
    parent = parent.expanduser()
    found = parent.iterdir() if parent.is_dir() else ()
    used = {int(path.name) for path in found if path.name.isdecimal() and not (path.is_dir() and _is_empty(path))}
    goes_on = FLAGS.resume or FLAGS.overwrite or (FLAGS.load_model and not FLAGS.pretrained)
    if goes_on and used:
        return parent / str(max(used))
    return parent / str(next(number for number in itertools.count() if number not in used))


def _is_empty(directory: Path) -> bool:
    return not any(directory.iterdir())


def _is_number(text: str, value: Any) -> bool:
    try:
        return value is not None and float(text) == float(value)
    except ValueError:
        return False


def _from_file(path: Path) -> dict[str, Any]:
    settings = settings_file.read(path, "config")
    for name in settings:
        ours = _OTHER_NAMES.get(name, name)
        if name not in _ELSEWHERE and ours not in FLAGS:
            raise BadInput(f"--config={path}: expected settings that --help lists. Received: {name}")
    return settings


def _set(name: str, value: Any) -> None:
    """Sets a flag by a setting of the file, unless the command line sets it."""
    if value is None:
        return
    flag = FLAGS[_OTHER_NAMES.get(name, name)]
    if flag.present:
        return
    if name == "eps_schedule" and isinstance(value, dict):
        value = ",".join(f"{key}={each}" for key, each in value.items())
    if name == "normalize":
        name = str(value).lower().removesuffix("_normalize")
        value = _NORMALIZE.get(name, name)
    try:
        flag.value = flag.parser.parse(value if isinstance(value, list) else str(value))
    except (TypeError, ValueError) as error:
        raise BadInput(f"--config={FLAGS.config}: {name}: {value!r}: {error}") from error
    flag.using_default_value = False


def _parsed(name: str, text: str) -> dict[str, Any]:
    try:
        return dict(part.split("=", 1) for part in text.split(","))
    except ValueError:
        raise BadFlag(f"--{name}={text}: expected name=PGD,step_size=2,threshold=8,iter_num=10") from None


def _set_augmentations(what: str, policy: Any, kind: str) -> None:
    """Sets --flip and --mix by `aug_policy`, a list or words separated by colons; crops are always made."""
    if policy is None:
        return
    words = [str(each).lower() for each in (policy if isinstance(policy, list) else str(policy).split(":"))]
    if kind != "fgsm-rs" or "crop" not in words or set(words) - {"crop", "vflip", *trs.training.MIXES}:
        raise BadFlag(
            f"{what}: expected name=FGSM-RS with aug_policy=crop and some of vflip, {', '.join(trs.training.MIXES)}, "
            f"separated by colons. Received: aug_policy={policy}"
        )
    mixes = [word for word in words if word in trs.training.MIXES]
    if len(mixes) > 1:
        raise BadFlag(f"{what}: expected one of {', '.join(trs.training.MIXES)}. Received: both")
    for name, value in (("flip", "vflip" in words), ("mix", mixes[0] if mixes else None)):
        if not FLAGS[name].present:
            FLAGS[name].value = value
            FLAGS[name].using_default_value = False


def _set_norm(what: str, order: Any) -> None:
    """Sets --norm by `order`: 2, or anything that is not positive or infinite for the largest entry."""
    if order is None:
        return
    try:
        number = float(order)
    except ValueError:
        number = 0.5
    if not (number <= 0 or number in (2, float("inf"))):
        raise BadFlag(f"{what}: expected order=2 or inf, or norm=Linf or L2. Received: {order}")
    if not FLAGS["norm"].present:
        FLAGS["norm"].value = "l2" if number == 2 else "linf"
        FLAGS["norm"].using_default_value = False


def _set_classes(what: str, number: Any) -> None:
    """Sets --n_classes, which is compared with the data, by `n_class`."""
    if number is None:
        return
    if not str(number).isdecimal() or (FLAGS.n_classes is not None and FLAGS.n_classes != int(number)):
        raise BadFlag(
            f"{what}: n_class={number}: expected the number of classes. Received: --n_classes={FLAGS.n_classes}"
        )
    FLAGS["n_classes"].value = int(number)


def _set_attack(name: str, settings: dict[str, Any], on_command_line: bool) -> None:
    what = f"--{name}" if on_command_line else f"--config={FLAGS.config}: {name}"
    if not isinstance(settings, dict):
        raise BadFlag(f"{what}: expected name, step_size, threshold, iter_num. Received: {settings!r}")
    settings = dict(settings)
    kind = str(settings.get("name", "")).lower()
    if "name" not in settings and "norm" in settings:  # a configuration of the evaluation by AutoAttack
        _set_norm(what, {"linf": "inf", "l2": 2}.get(str(settings.pop("norm")).lower(), "another"))
        FLAGS["load_model"].value = True
    elif kind not in _ATTACK_NAMES[name]:
        raise BadFlag(f"{what}: expected name={' or '.join(_ATTACK_NAMES[name])}. Received: {settings.get('name')}")
    _set_augmentations(what, settings.pop("aug_policy", None), kind)
    _set_norm(what, settings.pop("order", None))
    _set_classes(what, settings.pop("n_class", None))
    unknown = set(settings) - {"name", *_ATTACK_FLAGS[name]}
    if unknown:
        raise BadFlag(f"{what}: expected name, step_size, threshold, iter_num. Received: {', '.join(sorted(unknown))}")
    targets = dict(_ATTACK_FLAGS[name])
    if name == "attack" and FLAGS.trainer == "adv_trades" and kind == "pgd":
        targets = _ATTACK_FLAGS["eval_attack"]  # there it is the one on held-out images
    for setting, flag_name in targets.items():
        if setting not in settings:
            continue
        flag = FLAGS[flag_name]
        if flag.present:
            # The command line wins over flagfiles, and those over --config.
            if is_direct(name) == is_direct(flag.name) and on_command_line:
                raise BadFlag(
                    f"--{name} and --{flag_name} say the same; pass one. "
                    f"Received: --{name}={FLAGS[name].value} --{flag_name}={flag.value:g}"
                )
            if not is_direct(name):
                continue
        try:
            number = float(settings[setting])
            if setting == "iter_num":
                flag.value = int(number)
            else:
                flag.value = flag.parser.parse(number if number < 1 else number / 255)
        except (TypeError, ValueError) as error:
            raise BadFlag(f"{what}: {setting}={settings[setting]}: expected a number ({error})") from error
        flag.using_default_value = False
