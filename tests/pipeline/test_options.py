"""Options are checked when they are made, before a model is loaded, and are plain values."""

import json
from dataclasses import asdict

import pytest

from palidecode.errors import InputError
from palidecode.pipeline import AskOptions, GrammarOptions, ModelOptions


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dtype": "fp32"}, "dtype must be one of bfloat16"),
        ({"resample": "nearest"}, "resample must be one of bicubic"),
        ({"final_softcap": 0}, "final_softcap must be above 0"),
    ],
)
def test_a_model_is_not_looked_for_with_unknown_options(option, message):
    with pytest.raises(InputError, match=message):
        ModelOptions("no such model", **option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"score": "best"}, "score must be one of label"),
        ({"over": "all"}, "over must be 'vocabulary' or 'allowed'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1}, "temperature must be 0 or more"),
        ({"top_p": 2}, "top_p must be in"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"classes_per_prompt": 0}, "classes_per_prompt must be at least 1, got 0"),
        ({"tiles": "2"}, "tiles must be 'auto', or columns and rows up to 16 as '2x2', got '2'"),
        ({"overlap": 1}, "overlap must be between 0 and 0.5, got 1"),
    ],
)
def test_nothing_is_asked_with_unknown_options(option, message):
    with pytest.raises(InputError, match=message):
        AskOptions(**option)


def test_options_can_be_written_as_json():
    ask = AskOptions(GrammarOptions(max_objects=3), score="box")
    assert json.loads(json.dumps(asdict(ask)))["grammar"]["max_objects"] == 3
    model = ModelOptions("demo", quantize="int8")
    assert ModelOptions(**json.loads(json.dumps(asdict(model)))) == model
