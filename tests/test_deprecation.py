"""Old names warn, name the new one, and work."""

import pytest
import tensorflow as tf

from tf_robust_sparse import attacks, deprecation


def test_old_names_of_a_module():
    find = deprecation.renamed("json", {"old": "dumps", "reader": "decoder.JSONDecoder"})
    with pytest.warns(DeprecationWarning, match=r"json\.old is deprecated .* use json\.dumps"):
        assert find("old")([1]) == "[1]"
    with pytest.warns(DeprecationWarning, match=r"use json\.decoder\.JSONDecoder"):
        assert find("reader")().decode("[1]") == [1]
    with pytest.raises(AttributeError, match="module 'json' has no attribute 'other'"):
        find("other")


def test_old_names_of_arguments():
    @deprecation.renamed_arguments(colour="color")
    def paint(color):
        return color

    with pytest.warns(DeprecationWarning, match=r"paint\(colour=...\) .* use color="):
        assert paint(colour="red") == "red"
    with pytest.raises(TypeError, match="both `color` and its old name `colour`"):
        paint(color="red", colour="blue")


def test_old_names_of_methods_are_called_and_overridden():
    class Base:
        def __init_subclass__(cls):
            deprecation.adopt_old_methods(cls, {"centre": "center"})

        def center(self):
            return 1

        centre = deprecation.renamed_method("centre", "center")

    with pytest.warns(DeprecationWarning, match=r"Base\.centre .* use Base\.center"):
        assert Base().centre() == 1
    with pytest.warns(DeprecationWarning, match=r"Overriding Sub\.centre .* use Sub\.center"):

        class Sub(Base):
            def centre(self):
                return 2

    assert Sub().center() == 2


def test_an_adopted_method_reaches_the_one_before_it():
    class Doubled(attacks.LinfPGD):
        def normalise(self, gradient):
            return 2 * super().normalise(gradient)

    with pytest.warns(DeprecationWarning, match="normalize"):
        found = Doubled(0.1).normalize(tf.constant([3.0, -1.0]))
    assert found.numpy().tolist() == [2.0, -2.0]
