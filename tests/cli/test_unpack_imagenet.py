"""ImageNet out of a prepared set, from the command line."""

import pytest

from tests.cli.conftest import run_script
from tests.cli.test_bad_input import assert_explained
from tests.data.test_image_files import prepare_imagenet

UNPACK = "run_unpack_imagenet"


@pytest.mark.filterwarnings("ignore")  # TensorFlow Datasets warns of its own dependencies
def test_copies_into_folders_of_classes(tmp_path):
    prepared = prepare_imagenet(tmp_path)
    done = run_script(UNPACK, f"--prepared={prepared}", f"--data_dir={tmp_path / 'files'}").expect()
    assert len(list((tmp_path / "files/train/n02").glob("*.JPEG"))) == 2 and str(tmp_path / "files") in done.out


def test_bad_input(tmp_path):
    assert_explained(run_script(UNPACK, f"--data_dir={tmp_path}"), "--prepared is missing. Folder")
    assert_explained(run_script(UNPACK, f"--prepared={tmp_path}"), "--data_dir is missing. Folder")
    done = run_script(UNPACK, f"--prepared={tmp_path}", f"--data_dir={tmp_path / 'x'}")
    assert_explained(done, f"--prepared={tmp_path}", "no dataset_info.json")
    assert not (tmp_path / "x").exists()
