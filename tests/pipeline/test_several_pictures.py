"""Several pictures in one prompt, against transformers on the same random weights."""

import numpy as np
import pytest
import torch
from transformers import PaliGemmaForConditionalGeneration

from palidecode.errors import InputError
from palidecode.pipeline import PaliDecoder, UnreadablePictureWarning
from tests.runtime.tiny_models import PICTURES, line, same_answers, write_folder

A, B, C = PICTURES
NEW = 12


@pytest.fixture(scope="module", params=[1, 2], ids=["gemma", "gemma2"])
def folder(request, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module", params=["torch", "onnx"])
def decoder(request, folder):
    return PaliDecoder.from_pretrained(folder, "float32", "cpu", engine=request.param)


def test_answers_are_those_of_transformers(decoder, folder):
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    groups, prompts = [[A, B], [C, A, B], [B, A]], ["are they alike?", "caption en", "caption en"]
    answers = decoder.generate(groups, prompts, NEW)
    assert answers[0].token_ids != answers[2].token_ids  # the order counts
    config = decoder.engine.config
    for pictures, prompt, answer in zip(groups, prompts, answers, strict=True):
        # As the processor of transformers does: all image tokens, <bos>, prompt, newline.
        prefix = decoder.tokenizer.encode_prompt(prompt)
        start = len(pictures) * config.vision.tokens + len(prefix)
        ids = [config.image_token] * (start - len(prefix)) + prefix + answer.token_ids
        types = torch.tensor([[int(column >= start) for column in range(len(ids))]])
        pixels = np.stack([decoder.shrink(picture).pixels for picture in pictures])
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]),
                pixel_values=torch.from_numpy(pixels),
                attention_mask=torch.ones_like(types),
                token_type_ids=types,
            ).logits[0, start - 1 : -1]
        assert logits.argmax(-1).tolist() == answer.token_ids
        rows = torch.arange(len(answer.token_ids))
        wanted = logits.log_softmax(-1)[rows, torch.tensor(answer.token_ids)]
        np.testing.assert_allclose(answer.logprobs, wanted, rtol=1e-4, atol=1e-4)


def test_batches_of_one_and_several_pictures_answer_as_each_alone(decoder):
    groups = [A, [A, B], [C], [B, C], C]
    together = decoder.generate(groups, "caption en", NEW, batch_size=2)
    alone = [decoder.generate([group], "caption en", NEW)[0] for group in groups]
    same_answers(together, alone)
    same_answers(decoder.generate([[A]], "caption en", NEW), decoder.generate(A, "caption en", NEW))


def test_boxes_are_measured_in_the_picture_that_is_named(decoder):
    with pytest.raises(InputError, match="'detect cat' is about several pictures: box_image=0"):
        decoder.detect([[A, B]], "cat")
    with pytest.raises(InputError, match="'segment cat' is about several pictures"):
        decoder.generate([[A, B], C], "segment cat")
    first = decoder.detect([[A, B]], "cat", max_new_tokens=NEW, box_image=0)
    second = decoder.detect([[A, B]], "cat", max_new_tokens=NEW, box_image=1)
    assert first.sizes.tolist() == [list(A.size)]
    assert second.sizes.tolist() == [list(B.size)]
    assert len(first) > 0
    scale = np.array([*B.size, *B.size]) / [*A.size, *A.size]
    np.testing.assert_allclose(second.xyxy, first.xyxy * scale)
    with pytest.raises(InputError, match="below the number of pictures, got 2") as caught:
        decoder.detect([[A, B]], "cat", box_image=2)
    line(caught)


def test_one_unreadable_picture_spoils_its_prompt_only(decoder, tmp_path):
    gone = tmp_path / "gone.png"
    with pytest.warns(UnreadablePictureWarning):
        found = decoder.generate([[A, gone], [A, B]], "caption en", NEW)
    assert "no such picture" in found[0].error
    assert not found[0].token_ids
    same_answers(found[1:], decoder.generate([[A, B]], "caption en", NEW))


def test_too_many_and_no_pictures(decoder):
    with pytest.raises(InputError, match=r"image \(8200 tokens\), .* exceed the model's 8192"):
        decoder.generate([[A] * 2050], "caption en")
    with pytest.raises(InputError, match="a prompt is about no picture"):
        decoder.generate([[]], "caption en")
