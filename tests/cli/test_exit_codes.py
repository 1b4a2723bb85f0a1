"""Exit codes of every command: 0 finished, 1 finished but look, 2 failed."""

import json
import shlex
import shutil

import pytest
from PIL import Image

from palidecode.cli import COMMANDS, main
from tests.samples import answer, written

SIZE = (64, 48)
TRIANGLE, TWO_POINTS = [4, 4, 30, 4, 4, 30], [1, 1, 2, 2]
CODES = """
0 decode good.jsonl --images pictures -o new.json
0 decode inverted.jsonl --images pictures -o new.json
0 decode inverted.jsonl --images pictures --drop-empty -o new.json
0 decode good.jsonl --images pictures --categories cats.txt --unmapped drop -o new.json
0 decode masks.jsonl --images pictures --min-area 1e6 --weights palidecode-demo -o new.json
0 decode --text "<loc0001><loc0001><loc0900><loc0900> a" --size 9x9 --categories cats.txt \
    --unmapped drop
1 decode broken.jsonl --images pictures -o new.json
1 decode missing.jsonl --images pictures -o new.json
1 decode stripped.jsonl --images pictures -o new.json
2 decode good.jsonl --images pictures --categories cats.txt --unmapped error -o new.json
2 decode nowhere.jsonl --images pictures -o new.json
2 decode missing_alone.jsonl --images pictures -o new.json
0 predict pictures --model demo --task detect --min-score 0.99 -o new.json
1 predict pictures other_kinds --model demo --task detect -o new.json
1 predict pictures damaged.png --model demo --task detect -o new.json
2 predict damaged.png --model demo --task detect -o new.json
2 predict pictures --model demo --task detect --device foo -o new.json
2 predict pictures --endpoint http://127.0.0.1:1/v1 --model m --prompt "detect a" -o new.json
2 predict pictures --endpoint nowhere --model m --prompt "detect a" -o new.json
2 predict pictures --model demo --task detect --timeout 9 -o new.json
2 predict nowhere --model demo --task detect -o new.json
0 convert lvis.json --to yolo -o new
0 convert coco.json --to yolo -o new
0 convert crowd.json --to yolo -o new
0 convert spaces.json --to csv -o new.csv
1 convert unreadable.json --to csv -o new.csv
1 convert ring.json --to csv -o new.csv
1 convert outside.json --to yolo -o new
2 convert good.jsonl --to csv -o new.csv
0 draw lvis.json --images pictures -o new
0 draw coco.json --images pictures -o new
0 draw crowd.json --images pictures -o new
0 draw spaces.json --images pictures -o new
0 draw good.jsonl --images pictures -o new
1 draw unreadable.json --images pictures -o new
1 draw ring.json --images pictures -o new
1 draw broken.jsonl --images pictures -o new
1 draw coco.json --images one_picture -o new
2 draw nowhere.json --images pictures -o new
0 view lvis.json --images pictures -o new
0 view coco.json --images pictures -o new
0 view spaces.json --images pictures -o new
0 view good.jsonl --images pictures -o new
1 view unreadable.json --images pictures -o new
1 view ring.json --images pictures -o new
1 view broken.jsonl --images pictures -o new
1 view coco.json --images one_picture -o new
2 view results.json --images pictures -o new
0 encode lvis.json --images pictures -o new.jsonl
0 encode coco.json -o new.jsonl
0 encode crowd.json -o new.jsonl
0 encode spaces.json -o new.jsonl
0 encode coco.json --categories cat --max-objects 1 --empty-images skip -o new.jsonl
0 encode bad_name.json --categories cat -o new.jsonl
1 encode bad_name.json -o new.jsonl
1 encode unreadable.json -o new.jsonl
1 encode ring.json --task segment --weights palidecode-demo -o new.jsonl
1 encode coco.json --images one_picture -o new.jsonl
2 encode unreadable.json --invalid error -o new.jsonl
2 encode results.json -o new.jsonl
0 evaluate lvis.json results.json
0 evaluate lvis.json lvis.json --scores ignore
0 evaluate coco.json results.json
0 evaluate coco.json results.json --min AP=1
0 evaluate crowd.json results.json
0 evaluate crowds.json results.json --crowds
0 evaluate spaces.json results.json
0 evaluate coco.json twice.json --merge-duplicates 0.5
0 evaluate coco.json prompted.json
0 evaluate coco.json scaled.json --scale-to-truth
0 evaluate coco.json good.jsonl --scores ignore
1 evaluate coco.json half.json --min AP=0.9
1 evaluate crowds.json results.json
1 evaluate unreadable.json results.json
1 evaluate ring.json results.json --iou-type segm
1 evaluate coco.json scaled.json
1 evaluate coco.json broken.jsonl --scores ignore
2 evaluate coco.json nowhere.json
2 evaluate results.json coco.json
2 evaluate coco.json elsewhere.json
0 compare results.json half.json --gt coco.json --bootstrap 10
1 compare results.json scaled.json --gt coco.json --bootstrap 10
1 compare results.json half.json --gt unreadable.json --bootstrap 10
2 compare results.json nowhere.json --gt coco.json
0 benchmark rf100vl rf --model demo -o new
1 benchmark rf100vl rf_broken --model demo -o new
2 benchmark rf100vl rf_broken --model demo --datasets torn -o new
2 benchmark rf100vl rf --model nowhere -o new
2 benchmark rf100vl nowhere --model demo -o new
0 evaluate-referring referring.jsonl
0 evaluate-referring referring.jsonl --min boxacc@0.5=1
1 evaluate-referring referring.jsonl --min boxacc@0.5=1 --min n_acc=1
1 evaluate-referring referring_broken.jsonl
1 evaluate-referring referring_stripped.jsonl
1 evaluate-referring some.jsonl --refs refs.json --instances coco.json
0 evaluate-referring some.jsonl --refs refs.json --instances coco.json --missing skip
2 evaluate-referring nowhere.jsonl
2 evaluate-referring good.jsonl
0 finetune train.jsonl --images pictures --model demo --steps 1 --batch-size 1 -o new
1 finetune train_broken.jsonl --images pictures --model demo --steps 1 --batch-size 1 -o new
2 finetune train.jsonl --images one_picture --model nowhere -o new
0 finetune train.jsonl --images pictures --model demo --steps 1 --flip --crop 0.5 -o new
2 finetune train.jsonl --images pictures --model demo --steps 1 --noise 3 -o new
2 finetune train.jsonl --images pictures --model demo --crop 2 -o new
2 finetune missing.jsonl --images pictures --model demo -o new
2 serve --model nowhere --port 0
2 serve --port 65536
2 serve --adapter a --port 0
2 merge nowhere -o new
2 merge demo -o new
2 export nowhere -o new
2 export demo -o pictures
0 grammar "detect cat ; dog"
0 grammar "segment cat" --model demo --labels free --max-objects 3 -o new.lark
2 grammar "caption en"
2 grammar "detect cat" --labels free
2 grammar "detect cat" --model nowhere
0 weights list
0 weights convert palidecode-demo new.npz
1 weights verify palidecode-demo
2 weights verify damaged.png
0 demo --answers -o new
2 demo --image damaged.png -o new
0 completion bash
2 completion tcsh
""".replace("\\\n", " ").strip()


def coco(**changed):
    """Two pictures, three objects; `changed` keys replace those of the first annotation."""
    rows = [
        {"image_id": 1, "category_id": 1, "bbox": [4, 4, 26, 26], "segmentation": [TRIANGLE]},
        {"image_id": 1, "category_id": 2, "bbox": [30, 10, 20, 20]},
        {"image_id": 2, "category_id": 1, "bbox": [8, 8, 32, 32], "segmentation": [TRIANGLE]},
    ]
    rows[0] |= changed
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": SIZE[0], "height": SIZE[1]}
            for number in (1, 2)
        ],
        "annotations": [{"id": n, "iscrowd": 0, **row} for n, row in enumerate(rows, 1)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def lvis():
    """The same as LVIS writes it: no iscrowd, addresses, and which categories were looked for."""
    images = [
        {key: row[key] for key in ("id", "width", "height")}
        | {"coco_url": f"http://images.example/{row['file_name']}"}
        | {"neg_category_ids": [2], "not_exhaustive_category_ids": [1]}
        for row in coco()["images"]
    ]
    rows = [{k: v for k, v in row.items() if k != "iscrowd"} for row in coco()["annotations"]]
    more = {"synonyms": ["x"], "synset": "x.n.01", "def": "", "frequency": "r"}
    categories = [row | more for row in coco()["categories"]]
    return {"images": images, "annotations": rows, "categories": categories}


def renamed(name):
    return coco() | {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": name}]}


def results(factor=1.0):
    return [
        {key: row[key] for key in ("image_id", "category_id")}
        | {"bbox": [factor * side for side in row["bbox"]], "score": 0.9 - 0.1 * number}
        | ({"segmentation": row["segmentation"]} if "segmentation" in row else {})
        for number, row in enumerate(coco()["annotations"])
    ]


def predicted(size=SIZE, **more):
    """Results as a dataset, of pictures of another size."""
    images = [row | {"width": size[0], "height": size[1]} for row in coco()["images"]]
    rows = [{"id": n, **row} for n, row in enumerate(results(size[0] / SIZE[0]), 1)]
    return coco() | {"images": images, "annotations": rows, **more}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for number, name in enumerate(("pictures/1.png", "pictures/2.png", "one_picture/1.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.effect_noise(SIZE, 50 + number).convert("RGB").save(folder / name)
    (folder / "damaged.png").write_bytes(b"\x89PNG damaged")
    (folder / "other_kinds").mkdir()
    Image.new("RGB", SIZE).save(folder / "other_kinds" / "3.png")
    (folder / "other_kinds" / "4.heic").write_bytes(b"")
    (folder / "cats.txt").write_text("cat\n")
    rows = [{"image": f"{n}.png", "output": answer("dog" if n == 1 else "cat")} for n in (1, 2)]
    stripped = [{**row, "output": "cat"} for row in rows]
    missing = {"image": "nowhere.png", "output": answer("cat")}
    masked = {**rows[0], "output": answer("cat", codes=range(16))}
    there = {"sent_id": 1, "output": "<loc0083><loc0063><loc0625><loc0469>", "size": SIZE}
    there |= {"bbox": [4, 4, 26, 26], "text": "the cat"}
    nothing = {"output": answer("cat"), "size": SIZE, "segmentation": None}
    sentences = [{"sent_id": n, "sent": "the cat"} for n in (1, 2)]
    ref = {"ref_id": 1, "split": "val", "image_id": 1, "ann_id": 1, "sentences": sentences}
    train = {"image": "1.png", "prefix": "detect cat", "suffix": answer("cat")}
    for name, content in {
        "good": rows,
        "train": [train],
        "train_broken": [train, "{"],
        "inverted": [*rows, {**rows[0], "output": answer("cat", (700, 800, 100, 200))}],
        "masks": [masked],
        "broken": [*rows, "{"],
        "missing": [*rows, missing],
        "missing_alone": [missing],
        "stripped": stripped,
        "referring": [there, nothing],
        "referring_broken": [there, "{"],
        "referring_stripped": [{**there, "output": "cat"}],
        "some": [there],
    }.items():
        written(folder, content).rename(folder / f"{name}.jsonl")
    crowd = {"iscrowd": 1, "segmentation": {"size": [*SIZE[::-1]], "counts": [0, 3072]}}
    for name, content in {
        "coco": coco(),
        "lvis": lvis(),
        "crowd": coco(**crowd),
        "crowds": coco() | {"annotations": [coco(**crowd)["annotations"][0]]},
        "spaces": renamed(" dog "),
        "bad_name": renamed("dog; puppy"),
        "unreadable": coco(bbox="four"),
        "ring": coco(segmentation=[TRIANGLE, TWO_POINTS]),
        "outside": coco(bbox=[100, 100, 9, 9]),
        "results": results(),
        "half": results()[:2],
        "twice": [*results(), {**results()[0], "score": 0.1}],
        "prompted": predicted(info={"asked": ["cat"]}),
        "scaled": predicted((2 * SIZE[0], 2 * SIZE[1])),
        "elsewhere": [{**row, "image_id": 9} for row in results()],
        "refs": [ref],
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    for name in ("rf", "rf_broken"):
        test = folder / name / "pets" / "test"
        shutil.copytree(folder / "pictures", test)
        (test / "_annotations.coco.json").write_text(json.dumps(coco()))
    (folder / "rf_broken" / "torn" / "test").mkdir(parents=True)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("line", CODES.splitlines())
def test_the_exit_code(inputs, tmp_path, monkeypatch, capsys, line):
    monkeypatch.setenv("PALIDECODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    code, *arguments = shlex.split(line)
    try:
        ended = main(arguments)
    except SystemExit as refused:  # argparse's
        ended = refused.code
    printed = capsys.readouterr()
    assert ended == int(code), printed
    assert bool(printed.err) or ended != 2


def test_every_command_is_in_the_table():
    assert {line.split()[1] for line in CODES.splitlines()} == set(COMMANDS)
