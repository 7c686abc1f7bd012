"""The networks that come with the package; `python -m tests.test_pretrained` writes docs/pretrained.md."""

from pathlib import Path

import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import run_script
from tf_robust_sparse.pretrained import catalog, pretrained_card
from tf_robust_sparse.pretrained.model_card import card_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pretrained.md"
HEAD = """# Networks that come with the package

```python
import tf_robust_sparse as trs

print(trs.list_pretrained())
network = trs.load_pretrained("fashion-small-cnn-rigl-0.1")  # pixels in [0, 1] to logits, a Keras model
```

On the command line, `--network=pretrained:NAME` takes the place of a path, as in
`trs eval --network=pretrained:fashion-small-cnn-rigl-0.1 --data=fashion_mnist_sample --epsilon=0.1 --attacks=pgd`.
Each network is a compact file with a card, `tf_robust_sparse/pretrained/networks/NAME.json`: the flags of its training
run, what was measured by which command on how many images, reasons for doubt, and limits. `trs publish` makes such
files of a run, and uploads them to the Hugging Face hub with `--repo_id=USER/MODEL`. The weights have the license of
the package.

All were trained on 2 CPU cores. Those whose names begin with `fashion` are for the sample of Fashion-MNIST in the
package at epsilon 0.1, those that begin with `mnist` for MNIST at epsilon 0.1, those that begin with `cifar10` for
CIFAR-10 at epsilon 8/255, all in Linf; accuracies under attack are upper bounds. The networks for CIFAR-10 are rows of
the [table of all methods](protocols.md): a tenth of ResNet-18's width, trained for eight epochs.

"""


def page():
    return HEAD + card_table(map(pretrained_card, trs.list_pretrained())) + "\n"


def test_the_page_has_all_networks():
    assert PAGE.read_text() == page(), "run python -m tests.test_pretrained"


def test_there_are_some_and_they_are_small():
    files = [catalog.pretrained_file(name) for name in trs.list_pretrained()]
    assert len(files) >= 8 and sum(file.stat().st_size for file in files) <= 5e6
    others = {path.name for path in catalog.FOLDER.iterdir()} - {file.name for file in files}
    assert others == {f"{name}.json" for name in trs.list_pretrained()}


@pytest.mark.parametrize("name", trs.list_pretrained())
def test_a_network_is_what_its_card_says(name):
    network, card = trs.load_pretrained(name), pretrained_card(name)
    assert trs.sparsity.statistics.nonzero(network) == card["weights"]["nonzero"]
    assert list(network.input_shape[1:]) == card["input_shape"] and card["name"] == name and card["limits"]
    assert card["evaluation"]["attacks"]["autoattack"] <= card["evaluation"]["attacks"]["pgd"]
    if card["data"]["name"] == "fashion_mnist_sample":
        images = trs.data.load("fashion_mnist_sample")
        number = card["evaluation"]["images"]
        logits = network(images.test_images[:number] / np.float32(255), training=False)
        found = np.mean(np.argmax(logits, 1) == images.test_labels[:number])
        assert found == pytest.approx(card["evaluation"]["clean_accuracy"], abs=1.5 / number)


def test_a_changed_file_and_an_unknown_name_are_refused(tmp_path, monkeypatch):
    name = trs.list_pretrained()[0]
    for suffix in (".trs", ".json"):
        data = (catalog.FOLDER / f"{name}{suffix}").read_bytes()
        (tmp_path / f"{name}{suffix}").write_bytes(data + b"\n")
    with pytest.raises(ValueError, match=f"such as {name}"):
        trs.load_pretrained(f"{name}0")
    monkeypatch.setattr(catalog, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="not the network that was shipped"):
        trs.load_pretrained(name)


def test_the_command_line_takes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--data=fashion_mnist_sample", "--attacks=clean", "--test_examples=20", "--batch_size=20")
    run_script("run_robustness_eval", "--network=pretrained:fashion-small-cnn-rigl-0.1", *flags).expect()
    assert (tmp_path / "fashion-small-cnn-rigl-0.1.robustness.json").exists()
    done = run_script("run_robustness_eval", "--network=pretrained:nothing", *flags)
    assert done.code == 1 and "--network=pretrained:nothing" in done.err and "Traceback" not in done.err


if __name__ == "__main__":
    PAGE.write_text(page())
