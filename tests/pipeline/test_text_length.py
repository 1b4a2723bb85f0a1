"""The text length that a checkpoint was trained with, and the warning about longer ones."""

import json
import warnings
from pathlib import Path

import pytest

from palidecode.pipeline import LongTextWarning, PaliDecoder
from palidecode.pipeline.checkpoint import Place
from tests.runtime.tiny_models import PICTURES, write_folder

HUB = "cache/models--google--paligemma2-10b-pt-448/snapshots/0123"


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("paligemma-3b-pt-224", 128),
        ("paligemma-3b-pt-448", 512),
        ("paligemma2-28b-pt-896", 512),
        ("paligemma-3b-mix-224", 256),
        ("paligemma2-10b-mix-448", 512),
        ("paligemma-3b-mix-224.f16.npz", 256),
        (HUB, 512),
        ("paligemma2-3b-ft-docci-448", None),  # each task has its own
        ("paligemma-3b-pt-2240", None),
        ("mine", None),
        ("paligemma-3b-pt-224/mine", None),
    ],
)
def test_names_of_published_checkpoints(name, length):
    assert Place(Path("models", name), name).text_length() == length


def test_what_a_folder_says_goes_before_its_name(tmp_path):
    folder = tmp_path / "paligemma-3b-pt-224"
    folder.mkdir()
    place = Place(folder, "x")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    assert place.text_length() == 128
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 300}))
    assert place.text_length() == 300
    (folder / "palidecode.json").write_text(json.dumps({"text_length": 200}))
    assert place.text_length() == 200


def test_longer_prompts_and_answers_warn_once(tmp_path):
    model = write_folder(tmp_path / "paligemma-3b-pt-224")
    decoder = PaliDecoder.from_pretrained(model, "float32", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder.generate(PICTURES[0], "detect cat", 20)
    prompts = ["caption en", "detect " + " ; ".join(["cat"] * 80)]
    with pytest.warns(LongTextWarning) as caught:
        decoder.generate(PICTURES[:2], prompts, 128)
    (only,) = caught
    assert "are more than the 128 that the model was trained with" in str(only.message)
    assert only.filename == __file__
