"""Attacks, bounds and smoothing called directly say what is wrong with images and labels."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.data.test_checks import BAD_IMAGES, BAD_LABELS, X, Y
from tf_robust_sparse import attacks, certify

NETWORK = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)])
CALLS = {
    "LinfPGD": lambda x, y: attacks.LinfPGD(0.1, num_steps=1)(NETWORK, x, y),
    "restarts": lambda x, y: attacks.LinfPGD(0.1, num_steps=1, restarts=2)(NETWORK, x, y),
    "L2FGSM": lambda x, y: attacks.L2FGSM(0.1)(NETWORK, x, y),
    "LinfPGD, best point": lambda x, y: attacks.LinfPGD(0.1, num_steps=1, keep_best=True)(NETWORK, x, y),
    "APGD": lambda x, y: attacks.APGD(0.1, num_steps=2)(NETWORK, x, y),
    "Square": lambda x, y: attacks.Square(0.1, num_queries=1)(NETWORK, x, y),
    "FAB": lambda x, y: attacks.FAB(0.1, num_steps=1)(NETWORK, x, y),
    "FMN": lambda x, y: attacks.FMN(num_steps=2)(NETWORK, x, y),
    "margins": lambda x, y: certify.margins(NETWORK, x, y, 0.1),
    "verify_images": lambda x, y: certify.verify_images(NETWORK, x, y, 0.1),
}


@pytest.mark.parametrize("call", CALLS)
def test_wrong_images_and_labels_are_one_line(call):
    for images, message in BAD_IMAGES.values():
        with pytest.raises(ValueError, match=message) as error:
            CALLS[call](images, Y)
        assert "\n" not in str(error.value)
    for name, (labels, message) in BAD_LABELS.items():
        for form in (labels, tf.constant(labels)) if name not in ("text", "too few") else (labels,):
            with pytest.raises(ValueError, match=message) as error:
                CALLS[call](X, form)
            assert "\n" not in str(error.value)
    for odd in (np.zeros((4, 8, 8, 3), np.float32), np.zeros((4, 32, 32, 1), np.float32)):
        with pytest.raises(ValueError, match=re.escape("(n, 8, 8, 1); add a batch axis to a single image")) as error:
            CALLS[call](odd, Y)
        assert "\n" not in str(error.value) and str(error.value).endswith(f"Received: shape {odd.shape}")
    found = CALLS[call](X, Y.astype(np.uint8)[:, None])
    assert len(found) == 4


def test_smoothing_asks_the_same_of_its_images():
    smoothed = certify.SmoothedClassifier(NETWORK, 0.25, 8)
    for image, message in ((X[0] * 255, "divide by 255"), (X[0] * np.nan, "NaN"), (X[0] > 0.5, "dtype bool")):
        for call in (smoothed.certify, smoothed.predict, smoothed.monitor, lambda x: smoothed.votes(x, 4)):
            with pytest.raises(ValueError, match=message):
                call(image)
    with pytest.raises(ValueError, match="4 images, 3 labels"):
        certify.certify_images(smoothed, X, Y[:3], n0=2, n=16)
