"""CocoEvaluator in the validation loops of Lightning and of plain transformers, on a CPU."""

import json
import warnings

import numpy as np
import pytest
import torch
from transformers import PaliGemmaForConditionalGeneration

from palidecode import CocoEvaluator, decode, evaluate_coco, from_coco
from palidecode.demo.model_demo import TRUTH
from palidecode.files import open_picture
from palidecode.runtime.image import ImageConfig, to_pixels
from palidecode.runtime.tokenizer import Tokenizer
from tests.samples import DEMO, TOKENIZER, answer

pytestmark = pytest.mark.slow

SCENES = DEMO / "scenes"
TEXTS = [
    (answer("cat"), answer("cat", (110, 200, 700, 800))),
    (answer("dog"), answer("cat")),
    (f"{answer('cat')} ; {answer('dog', (0, 0, 90, 90))}", answer("cat")),
]


def test_lightning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning as lightning

        class Model(lightning.LightningModule):
            """Answers as its batch tells it to."""

            def __init__(self):
                super().__init__()
                self.evaluator = CocoEvaluator(scores="ignore")
                self.results = []

            def on_validation_epoch_start(self):
                self.evaluator.reset()

            def validation_step(self, batch, number):
                suffixes, answers = batch
                sizes = [(64, 64)] * len(answers)
                self.evaluator.update(decode(answers, sizes), decode(suffixes, sizes))

            def on_validation_epoch_end(self):
                self.results.append(self.evaluator.compute())
                self.log("AP50", self.results[-1].metrics["AP50"])

        loader = torch.utils.data.DataLoader(TEXTS, batch_size=2)
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        model = Model()
        (first,) = trainer.validate(model, loader, verbose=False)
        (second,) = trainer.validate(model, loader, verbose=False)
    sizes = [(64, 64)] * 3
    evaluator = CocoEvaluator(scores="ignore")
    evaluator.update(
        decode([text for _, text in TEXTS], sizes), decode([text for text, _ in TEXTS], sizes)
    )
    wanted = evaluator.compute()
    assert 0 < wanted.metrics["AP50"] < 1
    assert first["AP50"] == second["AP50"] == pytest.approx(wanted.metrics["AP50"])
    assert model.results[1].to_pandas().equals(wanted.to_pandas())


def test_transformers():
    folder = DEMO / "model"
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(TOKENIZER)
    config = ImageConfig(model.config.vision_config.image_size)
    truth = from_coco(SCENES / TRUTH)
    classes = json.loads((folder / "palidecode.json").read_text())["classes"]
    prompt = tokenizer.encode_prompt(f"detect {' ; '.join(classes)}")
    image = [model.config.image_token_id] * model.config.text_config.num_image_tokens
    evaluator = CocoEvaluator(scores="ignore")
    every = []
    for index in range(0, 4, 2):
        names = truth.names[index : index + 2]
        pixels = to_pixels([open_picture(SCENES / name) for name in names], config)
        ids = torch.tensor([image + prompt] * 2)
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                token_type_ids=torch.zeros_like(ids),
                pixel_values=torch.as_tensor(pixels),
                max_new_tokens=60,
                do_sample=False,
            )
        found = decode(
            made[:, ids.shape[1] :].numpy(),
            truth.sizes[index : index + 2],
            names=names,
            vocabulary=tokenizer.vocabulary,
            detokenize=tokenizer.decode,
        )
        every.append(found)
        evaluator.update(found, truth.image(index) + truth.image(index + 1))
    result = evaluator.compute()
    assert len(every[0]) > 2
    assert result.metrics["AP50"] > 0.5
    data = json.loads((SCENES / TRUTH).read_text())
    kept = {image["id"] for image in data["images"] if image["file_name"] in truth.names[:4]}
    data["images"] = [image for image in data["images"] if image["id"] in kept]
    data["annotations"] = [row for row in data["annotations"] if row["image_id"] in kept]
    wanted = evaluate_coco(data, every[0] + every[1], scores="ignore")
    np.testing.assert_allclose(result.stats[:3], wanted.stats[:3], atol=1e-12)
