"""Settings: flags of their fields, typed values, and the rules that follow from them."""

import dataclasses
import types

import pytest

from tf_robust_sparse.cli import command_line, embedded, settings
from tf_robust_sparse.cli.settings import OnlyFor, Settings, setting

FAST = OnlyFor("--kind=fast", lambda flags: flags.kind == "fast")


@dataclasses.dataclass
class Example(Settings):
    """One field of each type."""

    title = "Example"

    kind: str = setting("slow", "How.", choices=("slow", "fast"), identity=True)
    radius: float = setting(8 / 255, "Radius.", upper=1, aliases=("eps",), identity=True)
    steps: int | None = setting(None, "Steps.", lower=1)
    loud: bool = setting(False, "Whether it speaks.", recorded=False)
    speed: float = setting(2.0, "Speed.", identity=True, only_for=FAST)
    gear: int = setting(1, "Gear.", only_for=FAST._replace(refuse=True))
    names: list[str] = setting([], "Names.")
    radii: list[float] | None = setting(None, "Radii.")

    @classmethod
    def settle(cls):
        """Fast ones take nine steps."""
        if settings.FLAGS.kind == "fast" and not settings.is_given("steps"):
            settings.FLAGS["steps"].value = 9

    def check(self):
        """Checks the radius."""
        if self.radius == 0:
            raise command_line.BadFlag("--radius=0: expected more")


@pytest.fixture
def parsed():
    """Returns a function that parses words in a command of these settings alone."""
    command = types.SimpleNamespace(define=Example.define)
    with embedded.flags_of(command):

        def parse(*words):
            embedded.parse(words)
            settings.check()
            return Example.read()

        yield parse


def test_fields_are_flags_and_flags_are_typed_fields(parsed):
    assert parsed() == Example()
    found = parsed("--eps=2/255", "--steps=3", "--loud", "--names=a,b", "--radii=1/4,0.5", "--kind", "fast")
    assert found == Example("fast", 2 / 255, 3, True, names=["a", "b"], radii=[0.25, 0.5])
    assert parsed("--kind=fast").steps == 9


def test_what_a_field_says_of_resuming_and_recording(parsed):
    parsed()
    assert settings.identity() == ["kind", "radius"] and settings.unrecorded() == {"loud"}
    parsed("--kind=fast")
    assert settings.identity() == ["kind", "radius", "speed"]


def test_flags_without_meaning_are_noted_or_refused(parsed, capsys):
    parsed("--speed=3")
    assert capsys.readouterr().out == "Note: --speed=3.0 has no effect here; it belongs to --kind=fast\n"
    parsed("--gear=1")  # its default, as records of earlier versions hold it
    parsed("--kind=fast", "--gear=2", "--speed=3")
    assert capsys.readouterr().out == ""
    with pytest.raises(command_line.BadFlag, match="--gear=2 belongs to --kind=fast; leave it out"):
        parsed("--gear=2")


@pytest.mark.parametrize(
    ("word", "message"),
    [("--radius=2", "in \\[0, 1\\]"), ("--steps=0", "steps"), ("--kind=no", "slow"), ("--radius=0", "expected more")],
)
def test_bounds_and_choices(word, message, parsed):
    with pytest.raises((command_line.BadFlag, ValueError), match=message):
        parsed(word)
