"""``POST /v1/decode``, which needs no model."""

from palidecode import decode, to_coco

TEXT = "<loc0046><loc0538><loc0795><loc1022> cat ; <loc0001><loc0002><loc0300"
MASK = "<loc0100><loc0100><loc0900><loc0900>" + "".join(f"<seg{n:03}>" for n in range(16)) + " dog"


def test_answers_become_objects(bare):
    body = {"answers": [TEXT, MASK], "sizes": [[640, 480], [64, 64]], "codec": "palidecode-demo"}
    body["answers"].append(f"{MASK} ; {MASK}")
    body["sizes"].append([64, 64])
    first, second, third = bare.post("/v1/decode", json=body).json()["images"]
    assert [item["label"] for item in third["objects"]] == ["dog", "dog"]
    wanted = decode(TEXT, (640, 480))
    (item,) = first["objects"]
    assert item["label"] == "cat"
    assert item["box"] == [round(side, 3) for side in wanted.xyxy[0].tolist()]
    assert TEXT[slice(*item["tokens"])] == "<loc0046><loc0538><loc0795><loc1022> cat"
    assert {issue["kind"] for issue in first["issues"]} == {"truncated"}
    assert second["objects"][0]["mask"]["polygons"]


def test_answers_become_coco(bare):
    body = {"answers": TEXT, "sizes": [640, 480], "names": ["a.jpg"]}
    dataset = bare.post("/v1/decode?format=coco", json=body).json()
    wanted = to_coco(decode(TEXT, (640, 480), names=["a.jpg"]))
    assert {name: dataset[name] for name in wanted} == wanted


def test_shapes_of_other_weights_are_said(bare):
    body = {"answers": MASK, "sizes": [64, 64]}
    reply = bare.post("/v1/decode", json=body).json()
    assert "mask shapes are NOT" in reply["warnings"][0]


def test_bad_input_is_one_line(bare):
    for body, said in (
        ({"answers": TEXT, "sizes": [[0, 1]]}, "`int` >= 1"),
        ({"answers": TEXT, "sizes": [10_000, 10_000]}, "more than 50,000,000 pixels"),
        ({"answers": [[1 << 70]], "sizes": [1, 1]}, "`int` <= 2147483647"),
        ({"answers": TEXT, "sizes": [[1]]}, "length >= 2"),
        ({"answers": TEXT}, "missing required field `sizes`"),
        ({"answers": 1, "sizes": [1, 1]}, "$.answers"),
        ({"answers": TEXT, "sizes": [1, 1], "colour": 1}, "colour"),
    ):
        reply = bare.post("/v1/decode", json=body)
        message = reply.json()["error"]["message"]
        assert reply.status_code == (413 if "pixels" in said else 400)
        assert "\n" not in message
        assert said in message
