"""Prefixes that are longer than a trainer may like."""

import json

from palidecode.cli import main
from palidecode.finetune.prefixes import PrefixLengths
from tests.samples import TOKENIZER


def encode(folder, capsys, classes, *more):
    dataset = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [1, 2, 30, 40]}],
        "categories": [{"id": n, "name": f"name{n}"} for n in range(classes)],
    }
    (folder / "coco.json").write_text(json.dumps(dataset))
    command = ["encode", str(folder / "coco.json"), "-o", str(folder / "rows.jsonl"), *more]
    assert main(command) == 0
    printed = capsys.readouterr()
    return json.loads((folder / "rows.jsonl").read_text())["prefix"], printed.out, printed.err


def test_a_long_prefix_warns_with_an_estimate(tmp_path, capsys):
    prefix, _, told = encode(tmp_path, capsys, 300)
    estimate = -(-len(prefix) // 3)
    assert estimate > 512
    assert f"more than 512 tokens: 1, the longest has {estimate:,} (estimated" in told
    _, _, told = encode(tmp_path, capsys, 3)
    assert told == ""


def test_a_tokenizer_counts(tmp_path, capsys):
    import tokenizers

    counter = tokenizers.Tokenizer.from_file(str(TOKENIZER))
    prefix, _, told = encode(tmp_path, capsys, 300, "--tokenizer", str(TOKENIZER))
    tokens = len(counter.encode(prefix, add_special_tokens=False).ids)
    assert tokens not in (-(-len(prefix) // 3), 0)
    assert f"the longest has {tokens:,} (counted)" in told
    _, printed, told = encode(tmp_path, capsys, 300, "--tokenizer", str(TOKENIZER), "--json")
    assert json.loads(printed)["prefix_tokens"] == {
        "over_512": 1,
        "longest": tokens,
        "counted": True,
    }
    assert told == ""


def test_rows_are_counted():
    lengths = PrefixLengths(lambda text: len(text.split()))
    for words in (512, 513, 2, 600):
        lengths.add("a " * words)
    assert (lengths.rows, lengths.longest) == (2, 600)
