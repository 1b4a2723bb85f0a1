"""OpenAI's client against the chat endpoint."""

import base64

import numpy as np
import openai
import pytest

from palidecode.files import data_folder

FILE = data_folder("palidecode.demo") / "scenes" / "scene_000004.jpg"


@pytest.fixture(scope="module")
def ask(client):
    """Ask as a user of OpenAI's library does."""
    api = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-", http_client=client)
    url = f"data:image/jpeg;base64,{base64.b64encode(FILE.read_bytes()).decode()}"
    picture = {"type": "image_url", "image_url": {"url": url}}

    def asked(prompt, **options):
        content = [picture, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        return api.chat.completions.create(model="demo", messages=messages, **options)

    asked.api = api
    return asked


def test_models_are_listed(ask):
    assert [model.id for model in ask.api.models.list()] == ["demo"]


def test_the_content_is_the_raw_answer(ask, decoder):
    prompt = f"detect {' ; '.join(decoder.classes)}"
    (wanted,) = decoder.generate(FILE, prompt, grammar=True, over="allowed")
    completion = ask(prompt, logprobs=True, top_logprobs=2)
    (choice,) = completion.choices
    assert choice.message.content == wanted.text
    assert choice.finish_reason == "stop"
    assert completion.usage.completion_tokens == len(wanted.token_ids)
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == wanted.text
    found = [token.logprob for token in tokens]
    np.testing.assert_allclose(found, wanted.logprobs[:-1], atol=1e-4)
    assert tokens[0].top_logprobs[0].token == tokens[0].token
    ends = [top.logprob for top in tokens[0].top_logprobs if top.token == "<eos>"]
    np.testing.assert_allclose(ends, wanted.end_logprobs[:1], atol=1e-4)


def test_chunks_join_to_the_answer(ask):
    prompt = "segment cat ; star ; tree ; dog"
    whole = ask(prompt, logprobs=True)
    chunks = list(ask(prompt, logprobs=True, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    text = "".join(delta.delta.content or "" for delta in deltas)
    assert text == whole.choices[0].message.content
    assert deltas[-1].finish_reason == "stop"
    listed = [delta.logprobs.content for delta in deltas if delta.logprobs]
    told = [token.token for tokens in listed for token in tokens]
    assert told == [token.token for token in whole.choices[0].logprobs.content]
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 2}, "value 2"),
        ({"top_logprobs": 2}, "logprobs: true"),
        ({"max_tokens": 100_000}, "at most 1024"),
        ({"stop": ["a"]}, "stop"),
        ({"temperature": -1}, "temperature must be 0 or more"),
    ],
)
def test_options_that_it_lacks_are_refused(ask, options, said):
    with pytest.raises(openai.BadRequestError, match=said) as error:
        ask("detect cat", **options)
    assert error.value.body["type"] == "invalid_request_error"


def test_another_model_is_unknown(ask):
    with pytest.raises(openai.NotFoundError, match="this server has 'demo'"):
        ask.api.chat.completions.create(
            model="other",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image_url",
                            "image_url": {
                                "url": "data:image/jpeg;base64,"
                                + base64.b64encode(FILE.read_bytes()).decode()
                            },
                        },
                        {"type": "text", "text": "detect cat"},
                    ],
                }
            ],
        )
