"""VNN-LIB properties, read back by a parser of the grammar and asked about points."""

import re
from fractions import Fraction

import numpy as np
import pytest

from tf_robust_sparse import attacks, certify
from tf_robust_sparse.certify import bounds


def parsed(text):
    """Every statement of the file as nested lists of words."""
    words = re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text))
    stack = [[]]
    for word in words:
        if word == "(":
            stack.append([])
        elif word == ")":
            stack[-2].append(stack.pop())
        else:
            stack[-1].append(word)
    (statements,) = stack
    return statements


class Property:
    """Variables, and conditions that can be asked about a point; numbers are exact."""

    def __init__(self, text):
        self.variables, self.conditions = [], []
        for kind, *rest in parsed(text):
            if kind == "declare-const":
                name, type_ = rest
                assert type_ == "Real" and re.fullmatch(r"[XY]_\d+", name) and name not in self.variables
                self.variables.append(name)
            else:
                assert kind == "assert" and len(rest) == 1
                self.conditions += rest

    def value(self, word, point):
        if word in self.variables:
            return Fraction(float(point[word]))
        assert re.fullmatch(r"-?\d+\.\d+", word), f"{word} is no decimal of SMT-LIB"
        return Fraction(word)

    def holds(self, condition, point):
        kind, *rest = condition
        if kind in ("and", "or"):
            return (all if kind == "and" else any)([self.holds(each, point) for each in rest])
        a, b = (self.value(word, point) for word in rest)
        return a >= b if kind == ">=" else {"<=": a <= b}[kind]

    def allows(self, x, logits):
        """Whether the point `(1, ...)` in the order of the file is a counterexample."""
        point = {f"X_{i}": value for i, value in enumerate(np.ravel(x))}
        point |= {f"Y_{j}": value for j, value in enumerate(np.ravel(logits))}
        assert set(point) == set(self.variables)
        return all(self.holds(condition, point) for condition in self.conditions)

    def box(self):
        sides = {">=": {}, "<=": {}}
        for kind, *rest in self.conditions:
            if kind in sides:
                sides[kind][rest[0]] = Fraction(rest[1])
        count = len(sides[">="])
        return [[sides[kind][f"X_{i}"] for i in range(count)] for kind in (">=", "<=")]


def image(shape=(3, 4, 2), seed=0):
    x = np.random.default_rng(seed).random(shape).astype(np.float32)
    x.flat[0], x.flat[1], x.flat[2] = 0.0, 1.0, 0.005
    return x


def in_file(x):
    return x.transpose(2, 0, 1) if x.ndim == 3 else x


@pytest.mark.parametrize("epsilon", [1e-6, 2 / 255, 0.1, 0.3, 0.999])
def test_the_box_holds_the_ball_in_real_numbers_and_as_float32(epsilon):
    for seed in range(3):
        x = image((5, 5, 3), seed)
        lower, upper = Property(certify.vnnlib_property(x, 1, epsilon, 3)).box()
        for value, least, most in zip(in_file(x).ravel(), lower, upper, strict=True):
            exact = Fraction(float(value))
            true_least, true_most = max(exact - Fraction(epsilon), 0), min(exact + Fraction(epsilon), 1)
            assert 0 <= least <= true_least and true_most <= most <= 1
            assert true_least - least < 2e-7 and most - true_most < 2e-7  # and is hardly larger
            for side in (least, most):
                assert Fraction(float(np.float32(float(side)))) == side  # readers in float32 round nothing
        ball = bounds.ball(x[None], epsilon)
        assert (in_file(ball.lower[0].numpy()).ravel() >= np.array(lower, float)).all()
        assert (in_file(ball.upper[0].numpy()).ravel() <= np.array(upper, float)).all()


def test_points_inside_and_outside():
    x, epsilon, safe, wrong = image(), 0.05, [0.0, 2.0, 1.0], [0.0, 2.0, 2.0]
    found = Property(certify.vnnlib_property(x, 1, epsilon, 3, "image 7\nlabel 1"))
    assert found.variables == [f"X_{i}" for i in range(24)] + [f"Y_{j}" for j in range(3)]
    random = np.random.default_rng(0)
    for _ in range(50):
        inside = np.clip(x + random.uniform(-epsilon, epsilon, x.shape), 0, 1)
        assert found.allows(in_file(inside), wrong)  # as high counts as wrong
        assert not found.allows(in_file(inside), safe)
        outside = inside.copy()
        chosen = tuple(random.integers(side) for side in x.shape)
        outside[chosen] = x[chosen] + (epsilon + 1e-6) * (1 if x[chosen] < 0.5 else -1)
        assert not found.allows(in_file(outside), wrong)
    assert not found.allows(in_file(x), [1.0, 2.0, 1.999]) and found.allows(in_file(x), [2.5, 2.0, 1.0])
    darker = x.copy()
    darker.flat[0] = -1e-9  # no pixel
    assert not found.allows(in_file(darker), wrong)


def test_an_image_of_which_an_attack_finds_an_adversarial_example_has_a_counterexample():
    from tests.networks import tiny_images, tiny_network

    network, (x, y) = tiny_network("masked", batch_norm=False), tiny_images(4)
    y = network(x, training=False).numpy().argmax(1)
    x_adv = attacks.LinfPGD(0.1, num_steps=20, seed=0)(network, x, y).numpy()
    logits = network(x_adv, training=False).numpy()
    assert (logits.argmax(1) != y).any()
    for i, label in enumerate(y):
        found = Property(certify.vnnlib_property(x[i], label, 0.1, 10))
        assert found.allows(in_file(x_adv[i]), logits[i]) == (logits[i].argmax() != label)


def test_the_text_is_what_line_readers_expect():
    """The competition's readers match lines: declarations, simple assertions, one disjunction of conjunctions."""
    text = certify.vnnlib_property(image((2, 2, 1)), 0, 0.1, 3, "first\nsecond")
    assert text.startswith("; first\n; second\n(declare-const X_0 Real)\n")
    joined = re.sub(r"\s*\n\s*", " ", text.partition("(assert (or")[2])
    assert joined == " (and (>= Y_1 Y_0)) (and (>= Y_2 Y_0)) )) "
    assert text.count("\n(assert (<= X_") == text.count("\n(assert (>= X_") == 4
    assert not re.search(r"\de", text)  # no exponents


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0}, "`epsilon` is a radius"),
        ({"epsilon": float("nan")}, "`epsilon` is a radius"),
        ({"epsilon": 1}, "`epsilon` is a radius"),
        ({"label": 3}, "`label` is in"),
        ({"label": -1}, "`label` is in"),
        ({"x": np.full((2, 2, 1), 1.5)}, "in \\[0, 1\\]"),
        ({"x": np.full((2, 2, 1), np.nan)}, "in \\[0, 1\\]"),
        ({"x": np.zeros((1, 2, 2, 1))}, "one image"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        certify.vnnlib_property(**{"x": image(), "label": 0, "epsilon": 0.1, "classes": 3} | change)
