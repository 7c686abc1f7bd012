"""Names and configurations of RobustBinarySubNet, the published code; `translate` turns them into our flags.

A flag on the command line, or in a flagfile, wins over the same setting of --config, and that over the default. An
attack is one setting: `--attack=name=PGD,step_size=2,threshold=8,iter_num=10` replaces the whole one of the file.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from tf_robust_sparse.cli import command_line, settings_file
from tf_robust_sparse.cli.command_line import BadFlag, BadInput
from tf_robust_sparse.cli.settings import Settings, setting
from tf_robust_sparse.training.stored_model import MIXES

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
_NORMALIZE = {"imagenet100": "imagenet"}
_ATTACK_NAMES = {"attack": ("pgd", "fgsm-rs"), "eval_attack": ("pgd",), "trades_attack": ("tradeskl",)}
_ATTACK_FLAGS = {  # what a setting of an attack stands for
    "attack": {"threshold": "epsilon", "step_size": "step_size", "iter_num": "num_steps"},
    "trades_attack": {"threshold": "epsilon", "step_size": "step_size", "iter_num": "num_steps"},
    "eval_attack": {"threshold": "val_epsilon", "step_size": "val_step_size", "iter_num": "val_num_steps"},
}
_ATTACK_HELP = ",step_size=2,threshold=8,iter_num=10; numbers from 1 on are 255ths."
# Flags of theirs that change nothing here, and why.
_HARMLESS = {
    "workers": "the input pipeline takes as many threads as it needs",
    "print_freq": "progress is shown by epochs",
}
# Flags of theirs that cannot be served, each with the value that changes nothing and what to do instead.
_REFUSED: dict[str, tuple[Any, str]] = {
    "subset": ("test", "test images; --select chooses among epochs by held-out ones"),
    "start_epoch": ("0", "--resume, which goes on after the last finished epoch"),
    "dampening": (0.0, "0, because no configuration has another one"),
    "file": (None, "run_mask_plots.py --network=FILE"),
}
_ELSEWHERE = ("log_dir", "multigpu", "subset", *_HARMLESS)
_ALIASES = {"num_classes": "n_classes", "evaluate": "load_model", "e": "load_model"}
_OTHER_NAMES = {"lr": "learning_rate", "num_classes": "n_classes"}


@dataclasses.dataclass
class Original(Settings):
    """What the published code calls by other names; recorded by ours."""

    title = "Flags of RobustBinarySubNet"

    config: str | None = setting(None, "YAML file of RobustBinarySubNet; flags win over what it says.")
    model_type: str | None = setting(
        None, "--model, or RobustBinarySubNet's name of one.", aliases=("a",), recorded=False
    )
    dataset: str | None = setting(None, "--data, or RobustBinarySubNet's name of it.", recorded=False)
    model_name: str | None = setting(
        None,
        "Name of the run, which is written to LOG_DIR/CONFIG/NAME/prune_rate=RATE/TRIAL; LOG_DIR is that of --log_dir, "
        "of --config, or runs. Each run gets the next trial; --resume goes on with the last one.",
        recorded=False,
    )
    attack: str | None = setting(None, f"Training attack, name=PGD or FGSM-RS{_ATTACK_HELP}", recorded=False)
    eval_attack: str | None = setting(None, f"Attack on held-out images, name=PGD{_ATTACK_HELP}", recorded=False)
    trades_attack: str | None = setting(None, f"Attack of adv_trades, name=TradesKL{_ATTACK_HELP}", recorded=False)
    multigpu: str | None = setting(
        None, "GPUs that train together, such as 0,1; as --strategy=mirrored on these.", recorded=False
    )


def define() -> None:
    """Defines the other names and spellings."""
    Original.define()
    command_line.define_aliases(_ALIASES)
    with command_line.section("Flags of RobustBinarySubNet that have no use here"):
        for name, reason in _HARMLESS.items():
            flags.DEFINE_string(name, None, f"Changes nothing, because {reason}.")
        for name, (_, instead) in _REFUSED.items():
            flags.DEFINE_string(name, None, f"Use {instead}.")
        command_line.define_aliases({"j": "workers", "p": "print_freq"})


def translate() -> None:
    """Reads --config and sets our flags by those of the published code, before any check.

    Raises:
        BadFlag: if both are given, or a setting is not known.
        BadInput: if the file cannot be read.
    """
    original = Original.read()
    settings = _from_file(Path(original.config).expanduser()) if original.config else {}
    attacks = {name: settings.pop(name, None) for name in _ATTACK_FLAGS}
    for name, value in settings.items():
        if name not in _ELSEWHERE:
            _set(name, value)
    _check_unused()
    _translate_name("model_type", "model", MODELS)
    _translate_name("dataset", "data", {name: name for name in ("cifar10", "cifar100", "imagenet100")})
    if FLAGS.trainer == "default":
        FLAGS["trainer"].value = "adv_step"
    for name in _ATTACK_FLAGS:
        text = getattr(original, name)
        found = _parsed(name, text) if text is not None else attacks[name]
        # TRADES attacks by its own, the other one is on held-out images then.
        if found is not None and name == "trades_attack" and FLAGS.trainer != "adv_trades":
            print(f"Note: trades_attack has no effect here; it belongs to --trainer=adv_trades, not {FLAGS.trainer}")
        elif found is not None:
            _set_attack(name, found, on_command_line=text is not None)
    if FLAGS.log_dir and not original.model_name:
        raise BadFlag("--log_dir is the folder of --model_name; pass --model_name=NAME with it, or --output_dir=DIR")
    if original.model_name:
        if FLAGS.output_dir:
            raise BadFlag(
                f"--output_dir={FLAGS.output_dir} and --model_name={original.model_name} both say where to write; "
                "drop one of them"
            )
        FLAGS.output_dir = str(_trial(original, settings.get("log_dir")))


def _check_unused() -> None:
    """Notes flags that change nothing, and refuses those that would."""
    for name, reason in _HARMLESS.items():
        if FLAGS[name].value is not None:
            print(f"Note: --{name}={FLAGS[name].value} changes nothing, because {reason}")
            FLAGS[name].value = None
    for name, (harmless, instead) in _REFUSED.items():
        given = FLAGS[name].value
        if given is not None and str(given) != str(harmless) and not _is_number(given, harmless):
            raise BadFlag(f"--{name}={given} is a setting of the published code that is not supported; use {instead}")


def _translate_name(theirs: str, ours: str, names: Mapping[str, str]) -> None:
    """Sets our flag by the published code's name of a network or of data."""
    given = FLAGS[theirs].value
    if given is None or (FLAGS[ours].present and not FLAGS[theirs].present):
        return
    value = names.get(given, names.get(given.lower(), given))
    if FLAGS[ours].present and FLAGS[ours].value != value:
        raise BadFlag(f"--{theirs}={given} and --{ours}={FLAGS[ours].value} name different things; drop one of them")
    if ours == "model" and value not in FLAGS["model"].parser.enum_values:
        raise BadFlag(f"--model_type={given}: expected one of {', '.join(MODELS)}")
    FLAGS[ours].value = value


def _trial(original: Original, log_dir: str | None) -> Path:
    """Returns the directory of the run: the first trial that is free, or the last one where a run goes on."""
    if FLAGS.strategy == "multi_worker":
        raise BadFlag(
            "--model_name counts trials, which every worker would do by itself; pass --output_dir=DIR with "
            "--strategy=multi_worker"
        )
    config = [Path(original.config).stem] if original.config else []
    parent = Path(
        FLAGS.log_dir or log_dir or "runs", *config, original.model_name or "", f"prune_rate={FLAGS.prune_rate}"
    )
    parent = parent.expanduser()
    found = parent.iterdir() if parent.is_dir() else ()
    used = {int(path.name) for path in found if path.name.isdecimal() and not _is_empty(path)}
    goes_on = FLAGS.resume or FLAGS.overwrite or (FLAGS.load_model and not FLAGS.pretrained)
    if goes_on and used:
        return parent / str(max(used))
    return parent / str(next(number for number in itertools.count() if number not in used))


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


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
            raise BadInput(f"--config={path}: --help lists no setting {name}; leave it out of the file")
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
    if kind != "fgsm-rs" or "crop" not in words or set(words) - {"crop", "vflip", *MIXES}:
        raise BadFlag(
            f"{what}: aug_policy={policy}: expected name=FGSM-RS with crop and some of vflip, "
            f"{', '.join(MIXES)}, separated by colons"
        )
    mixes = [word for word in words if word in MIXES]
    if len(mixes) > 1:
        raise BadFlag(f"{what}: aug_policy={policy} mixes images twice; drop one of {', '.join(mixes)}")
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
        raise BadFlag(f"{what}: order={order}: expected order=2 or inf, or norm=Linf or L2")
    if not FLAGS["norm"].present:
        FLAGS["norm"].value = "l2" if number == 2 else "linf"
        FLAGS["norm"].using_default_value = False


def _set_classes(what: str, number: Any) -> None:
    """Sets --n_classes, which is compared with the data, by `n_class`."""
    if number is None:
        return
    if not str(number).isdecimal() or (FLAGS.n_classes is not None and FLAGS.n_classes != int(number)):
        same = "" if FLAGS.n_classes is None else f", as in --n_classes={FLAGS.n_classes}"
        raise BadFlag(f"{what}: n_class={number}: expected the number of classes{same}")
    FLAGS["n_classes"].value = int(number)


def _set_attack(name: str, settings: dict[str, Any], on_command_line: bool) -> None:
    what = f"--{name}" if on_command_line else f"--config={FLAGS.config}: {name}"
    if not isinstance(settings, dict):
        raise BadFlag(f"{what}: {settings!r}: expected name, step_size, threshold, iter_num")
    settings = dict(settings)
    kind = str(settings.get("name", "")).lower()
    if "name" not in settings and "norm" in settings:  # a configuration of the evaluation by AutoAttack
        _set_norm(what, {"linf": "inf", "l2": 2}.get(str(settings.pop("norm")).lower(), "another"))
        FLAGS["load_model"].value = True
    elif kind not in _ATTACK_NAMES[name]:
        raise BadFlag(f"{what}: name={settings.get('name')}: expected name={' or '.join(_ATTACK_NAMES[name])}")
    _set_augmentations(what, settings.pop("aug_policy", None), kind)
    _set_norm(what, settings.pop("order", None))
    _set_classes(what, settings.pop("n_class", None))
    unknown = set(settings) - {"name", *_ATTACK_FLAGS[name]}
    if unknown:
        raise BadFlag(f"{what}: no {', '.join(sorted(unknown))}; expected name, step_size, threshold, iter_num")
    targets = dict(_ATTACK_FLAGS[name])
    if name == "attack" and FLAGS.trainer == "adv_trades" and kind == "pgd":
        targets = _ATTACK_FLAGS["eval_attack"]  # there it is the one on held-out images
    for key, flag_name in targets.items():
        if key not in settings:
            continue
        flag = FLAGS[flag_name]
        if flag.present:
            # The command line wins over flagfiles, and those over --config.
            if command_line.is_direct(name) == command_line.is_direct(flag.name) and on_command_line:
                raise BadFlag(
                    f"--{name}={FLAGS[name].value} and --{flag_name}={flag.value:g} say the same; drop one of them"
                )
            if not command_line.is_direct(name):
                continue
        try:
            number = float(settings[key])
            if key == "iter_num":
                flag.value = int(number)
            else:
                flag.value = flag.parser.parse(number if number < 1 else number / 255)
        except (TypeError, ValueError) as error:
            raise BadFlag(f"{what}: {key}={settings[key]}: expected a number ({error})") from error
        flag.using_default_value = False
