"""``POST /v1/stream`` against the same model asked directly."""

import json

import numpy as np
import pytest

from palidecode.files import data_folder
from palidecode.prompts import write_prompt

SCENE = "scene_000004.jpg"
FILE = data_folder("palidecode.demo") / "scenes" / SCENE


def events_of(response):
    """Return the events of a reply: name and data."""
    events = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


@pytest.fixture(scope="module")
def prompt(decoder):
    return write_prompt("segment", decoder.classes)


@pytest.mark.parametrize("sub_bin", [False, True])
def test_objects_appear_while_the_model_writes(client, decoder, prompt, sub_bin):
    form = {"scene": SCENE, "prompt": prompt, "options": json.dumps({"sub_bin": sub_bin})}
    reply = client.post("/v1/stream", files={name: (None, text) for name, text in form.items()})
    assert reply.status_code == 200, reply.text
    events = events_of(reply)
    names = [name for name, _ in events]
    wanted = decoder.segment(FILE, prompt, sub_bin=sub_bin)
    (answer,) = decoder.generate(FILE, prompt, grammar=True, over="allowed")
    assert len(wanted) >= 2
    assert names[0] == "start"
    assert names[-1] == "end"
    tokens = [data for name, data in events if name == "token"]
    assert [token["id"] for token in tokens] == answer.token_ids
    assert "".join(token["text"] for token in tokens) == answer.text
    objects = [data for name, data in events if name == "object"]
    assert [item["label"] for item in objects] == wanted.labels
    np.testing.assert_allclose([item["box"] for item in objects], wanted.xyxy, atol=1e-2)
    np.testing.assert_allclose([item["score"] for item in objects], wanted.scores, atol=1e-4)
    assert all(item["mask"]["polygons"] for item in objects)
    # The first object comes before the last token.
    assert names.index("object") < len(names) - 1 - names[::-1].index("token")
    end = events[-1][1]
    assert end["answer"] == answer.text
    assert end["objects"] == objects
    first, last = objects[0]["tokens"]
    assert "".join(token["text"] for token in tokens[first:last]).startswith("<loc")
