import pytest

from palidecode.prompts import asked_for


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("segment cow\\n", "cow\\n"),
        ("segment cow\n", "cow"),
        ("detect a ; b", ""),
        ("the cat", "the cat"),
    ],
)
def test_what_a_prompt_asks_for(prompt, label):
    assert asked_for(prompt) == label
