import json

import cv2
import numpy as np
import pytest
from PIL import Image
from transformers import SiglipImageProcessorPil

from palidecode import InputError
from palidecode.files import open_picture
from palidecode.runtime.config import PaliGemmaConfig, VisionConfig
from palidecode.runtime.image import ImageConfig, read_image_config, resize, to_pixels

SIZES = [(640, 480), (31, 200), (224, 224), (7, 5), (1, 1), (1500, 37)]


def noise(width, height, channels=3, seed=0):
    """Smooth and rough parts, so that filters differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 127 + 90 * np.sin(x / 9 + y[:, :] / 5)
    grain = rng.normal(0, 40, (height, width, channels))
    return np.clip(waves[:, :, None] + grain, 0, 255).astype(np.uint8)


def processor(side, resample=3, **kwargs):
    return SiglipImageProcessorPil(
        size={"height": side, "width": side},
        resample=resample,
        image_mean=kwargs.get("mean", [0.5] * 3),
        image_std=kwargs.get("std", [0.5] * 3),
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [28, 224])
@pytest.mark.parametrize(("resample", "number"), [("bicubic", 3), ("bilinear", 2)])
def test_pixels_are_the_hugging_face_processors_bit_by_bit(size, side, resample, number):
    image = Image.fromarray(noise(*size))
    theirs = processor(side, number)(images=[image], return_tensors="np")["pixel_values"]
    ours = to_pixels([image], ImageConfig(side, resample))
    assert (ours.dtype, ours.shape) == (np.float32, (1, 3, side, side))
    assert np.array_equal(ours, theirs)
    assert np.abs(ours).max() <= 1


def test_other_means_and_deviations_are_the_processors_too():
    image = Image.fromarray(noise(50, 40))
    mean, std = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
    theirs = processor(56, mean=list(mean), std=list(std))(images=image)["pixel_values"]
    assert np.array_equal(to_pixels([image], ImageConfig(56, mean=mean, std=std)), theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [28, 224])
def test_big_visions_way_is_bilinear_without_antialias(size, side):
    levels = noise(*size)
    ours = resize(Image.fromarray(levels), ImageConfig(side, "big_vision")).astype(np.float64)
    field = cv2.resize(levels.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    # Fractions are cut off. Places of 1500 pixels are known to 1e-4 in float32, and noise is
    # 255 levels steep: so far the two may differ.
    assert ((field - ours > -0.05) & (field - ours < 1.05)).all()
    assert (np.floor(field) == ours).mean() > 0.95
    pixels = to_pixels([levels], ImageConfig(side, "big_vision"))
    assert np.abs(pixels[0].transpose(1, 2, 0) - (ours / 127.5 - 1)).max() < 1e-6


def test_the_two_ways_differ_where_a_picture_shrinks():
    levels = noise(640, 480)
    bicubic, big_vision = (
        to_pixels([levels], ImageConfig(56, way)) for way in ("bicubic", "big_vision")
    )
    assert np.abs(bicubic - big_vision).mean() > 0.05


def test_every_kind_of_picture_gives_the_same_pixels(tmp_path):
    levels = noise(40, 30)
    path = tmp_path / "x.png"
    Image.fromarray(levels).save(path)
    opaque = np.dstack([levels, np.full((30, 40, 1), 255, np.uint8)])
    with Image.open(path) as lazy:
        kinds = [levels, opaque, Image.fromarray(levels), path, str(path), lazy]
        pixels = to_pixels(kinds, ImageConfig(28))
    assert pixels.shape == (6, 3, 28, 28)
    assert (pixels == pixels[0]).all()
    grey = to_pixels([levels[:, :, 0], Image.fromarray(levels[:, :, 0])], ImageConfig(28))
    assert (grey == grey[0, 0]).all()


def test_no_pictures_are_no_pixels():
    assert to_pixels([], ImageConfig(28)).shape == (0, 3, 28, 28)


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "I;16", "CMYK", "1"])
def test_every_mode_is_what_open_picture_makes_of_it(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    grey = Image.fromarray(noise(30, 20)[:, :, 0])
    if mode == "I;16":
        grey = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        grey = grey.convert(mode)
    grey.save(path)
    opened = open_picture(path)
    with Image.open(path) as lazy:
        pixels = to_pixels([path, lazy, opened], ImageConfig(28))
    assert (pixels == pixels[0]).all()
    assert np.ptp(pixels) > 0.5


def test_exif_rotation_is_applied_once(tmp_path):
    levels = noise(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90° clockwise
    Image.fromarray(levels).save(tmp_path / "x.png", exif=exif)
    opened = open_picture(tmp_path / "x.png")
    assert opened.size == open_picture(opened).size == (20, 30)
    turned = np.rot90(levels, -1)
    pixels = to_pixels([tmp_path / "x.png", opened, turned], ImageConfig(28))
    assert (pixels == pixels[0]).all()


def test_an_unreadable_picture_is_named_with_its_place(tmp_path):
    Image.fromarray(noise(64, 64)).save(tmp_path / "good.png")
    data = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"^picture 2 of 2: .*cut\.png: can't be read"):
        to_pixels([tmp_path / "good.png", tmp_path / "cut.png"])
    with pytest.raises(InputError, match=r"^\S*missing\.png: no such picture"):
        to_pixels([tmp_path / "missing.png"])
    with (
        Image.open(tmp_path / "cut.png") as lazy,
        pytest.raises(InputError, match=r"cut\.png: can't be read"),
    ):
        to_pixels([lazy])


@pytest.mark.parametrize(
    "picture",
    [
        np.full((4, 4, 3), 255, np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        None,
        7,
    ],
)
def test_what_is_no_picture_is_refused(picture):
    with pytest.raises(InputError, match="picture"):
        to_pixels([picture])


CONFIG = PaliGemmaConfig(VisionConfig(image_size=448))


def test_a_folder_without_a_preprocessor_has_paligemmas_ways(tmp_path):
    assert read_image_config(tmp_path, CONFIG) == ImageConfig(448)


def test_what_transformers_saves_is_read(tmp_path):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]
    processor(448, 2, mean=mean, std=std).save_pretrained(tmp_path)
    wanted = ImageConfig(448, "bilinear", tuple(mean), tuple(std))
    assert read_image_config(tmp_path, CONFIG) == wanted
    whole = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    nested = {"image_processor": whole, "processor_class": "PaliGemmaProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert read_image_config(tmp_path, CONFIG) == wanted


def test_pixels_that_are_not_normalised_stay_from_0_to_1(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    pixels = to_pixels([noise(9, 9)], read_image_config(tmp_path, CONFIG))
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "not a JSON object"),
        ({"size": {"height": 224, "width": 224}}, "the model reads 448 × 448"),
        ({"size": {"shortest_edge": 448}}, "the model reads 448"),
        ({"resample": 1}, "resample is 1"),
        ({"resample": [3]}, "resample is"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_resize": False}, "do_resize true"),
        ({"rescale_factor": 1 / 127.5}, "1/255"),
        ({"do_rescale": False}, "1/255"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is"),
        ({"image_mean": "grey"}, "image_mean is"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std"),
        ({"image_std": [0.5, float("nan"), 0.5]}, "image_std is"),
    ],
)
def test_a_preprocessor_that_is_not_understood_is_refused(tmp_path, data, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=message) as caught:
        read_image_config(tmp_path, CONFIG)
    assert "preprocessor_config.json" in str(caught.value)
