import numpy as np
import pytest

from palidecode import CategoryMap, InputError, evaluate_coco, to_finetuning_rows
from palidecode.coco.categories import (
    ALIASES,
    IRREGULAR,
    category_names,
    fold,
    read_categories,
)
from palidecode.coco.skips import SkippedRowsWarning

COCO = ["person", "bicycle", "bus", "cell phone", "tv", "couch", "knife", "mouse", "glass", "skis"]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Person", "person"),
        ("people", "person"),
        ("bicycles", "bicycle"),
        ("buses", "bus"),
        ("cell_phone", "cell phone"),
        ("Cell  Phones", "cell phone"),
        ("mobile phone", "cell phone"),
        ("television", "tv"),
        ("sofas", "couch"),
        ("knives", "knife"),
        ("mice", "mouse"),
        ("glasses", "glass"),
        ("ski", "skis"),
        ("SKIS", "skis"),
    ],
)
def test_loose_undoes_case_plurals_and_aliases(label, name):
    loose = CategoryMap(COCO, match="loose", unmapped="error")
    assert loose.id_of(label) == COCO.index(name) + 1
    with pytest.raises(InputError, match=r"not among the categories \(10\)"):
        CategoryMap(COCO, unmapped="error").id_of(label)


@pytest.mark.parametrize("label", ["cellphone tower", "gras", "s", "bu", "busy", "per son"])
def test_loose_does_not_guess(label):
    mapping = CategoryMap(COCO, match="loose", unmapped="drop")
    assert mapping.id_of(label) is None
    assert mapping.left_out == {label: 1}


def test_what_fits_two_categories_fits_none():
    mapping = CategoryMap(["axe", "axis"], match="loose", unmapped="drop", aliases={"axes": "axe"})
    assert mapping.id_of("axes") == 1
    mapping = CategoryMap(["Cat", "cAT"], match="loose", unmapped="drop")
    assert mapping.id_of("CAT") is None


def test_exact_goes_before_loose():
    mapping = CategoryMap(["cats", "cat"], match="loose")
    assert [mapping.id_of("cats"), mapping.id_of("cat")] == [1, 2]


def test_kept_labels_become_categories_after_the_given_ones():
    mapping = CategoryMap([{"id": 90, "name": "toothbrush"}])
    assert [mapping.id_of(label) for label in ("zebra", "toothbrush", "zebra", "")] == [
        91,
        90,
        91,
        92,
    ]
    assert [item["name"] for item in mapping.categories] == ["toothbrush", "zebra", "object"]


def test_given_categories_are_not_changed():
    given = [{"id": 1, "name": "cat"}]
    CategoryMap(given).id_of("dog")
    assert given == [{"id": 1, "name": "cat"}]


@pytest.mark.parametrize("labels", [("kitty", "cat"), ("cat", "kitty")])
def test_an_alias_names_a_new_category_in_any_order(labels):
    mapping = CategoryMap(aliases={"kitty": "cat"})
    assert [mapping.id_of(label) for label in labels] == [1, 1]
    assert [item["name"] for item in mapping.categories] == ["cat"]


def test_own_aliases_work_with_exact_too():
    assert CategoryMap(["cat"], unmapped="drop", aliases={"kitty": "cat"}).id_of("kitty") == 1


@pytest.mark.parametrize(
    "categories",
    [
        [{"id": 1}],
        [{"id": "1", "name": "a"}],
        [{"id": True, "name": "a"}],
        ["a", "a"],
        [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}],
        [3],
        {"images": []},
    ],
)
def test_unusable_categories_are_refused(categories):
    with pytest.raises(InputError, match="categor"):
        CategoryMap(categories)


@pytest.mark.parametrize("option", [{"match": "fuzzy"}, {"unmapped": "guess"}])
def test_unknown_options_are_refused(option):
    with pytest.raises(InputError, match="must be"):
        CategoryMap(["a"], **option)


def test_tables_are_folded_and_end_in_singulars():
    for table in (ALIASES, IRREGULAR):
        for key, value in table.items():
            assert fold(key) == key
            assert value not in table


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('["cat", "dog"]', ["cat", "dog"]),
        ('[{"id": 3, "name": "cat"}]', ["cat"]),
        ('{"categories": [{"id": 3, "name": "cat"}], "images": []}', ["cat"]),
    ],
)
def test_categories_of_a_json_file(tmp_path, content, names):
    path = tmp_path / "categories.json"
    path.write_text(content)
    assert category_names(read_categories(path)) == names


def test_categories_of_a_text_file(tmp_path):
    path = tmp_path / "categories.txt"
    path.write_text("cat\n\n dog \n")
    assert category_names(read_categories(path)) == ["cat", "dog"]
    assert read_categories(None) is None
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="can't be read"):
        read_categories(path)


@pytest.mark.parametrize("content", ["null", "7", "true", '"cat"', "{}", '{"categories": 5}'])
def test_files_without_categories_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "categories.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"categories.json: .*categories") as caught:
        read_categories(path)
    assert "\n" not in str(caught.value)


def test_categories_that_can_not_be_read_are_skipped(tmp_path):
    path = tmp_path / "categories.json"
    path.write_text('[{"id": 1, "name": "cat"}, {"id": "two", "name": "dog"}, null]')
    with pytest.warns(SkippedRowsWarning, match=r"2 categories could not be read .categories\[1\]"):
        assert read_categories(path) == [{"id": 1, "name": "cat"}]
    path.write_text("[null]")
    with pytest.raises(InputError, match="category 0 needs"):
        read_categories(path)


def test_ids_of_categories_may_be_whole_floats_and_numbers_of_numpy():
    given = [{"id": 3.0, "name": "cat", "more": 1}, {"id": np.int64(4), "name": "dog"}]
    assert CategoryMap(given).categories == [
        {"id": 3, "name": "cat", "more": 1},
        {"id": 4, "name": "dog"},
    ]
    for wrong in (3.5, float("nan"), True, "3", None):
        with pytest.raises(InputError, match="category 0 needs"):
            CategoryMap([{"id": wrong, "name": "cat"}])


def test_white_space_around_names_is_stripped_and_noted(tmp_path):
    with pytest.warns(UserWarning, match="white space .* was stripped: ' cat', 'dog\\\\n'"):
        assert category_names([" cat", "dog\n", "traffic light"]) == ["cat", "dog", "traffic light"]
    path = tmp_path / "names.json"
    path.write_text('[{"id": 3, "name": "cat "}]')
    with pytest.warns(
        SkippedRowsWarning,
        match=r"names.json: 1 category whose name had white space around it, .* \('cat '\)",
    ):
        assert read_categories(path) == [{"id": 3, "name": "cat"}]
    with (
        pytest.raises(InputError, match="are both called 'cat'"),
        pytest.warns(UserWarning, match="white space"),
    ):
        category_names(["cat", "cat "])


def test_evaluation_and_encoding_know_names_with_white_space():
    image = {"id": 7, "file_name": "a.jpg", "width": 64, "height": 64}
    box = {"image_id": 7, "bbox": [8, 8, 32, 32]}
    truth = {
        "images": [image],
        "annotations": [{**box, "id": 1, "category_id": 0}],
        "categories": [{"id": 0, "name": " cat"}],
    }
    found = {
        "images": [image],
        "annotations": [{**box, "id": 1, "category_id": 5, "score": 1}],
        "categories": [{"id": 5, "name": "cat"}],
    }
    result = evaluate_coco(truth, found)
    assert result.rates.right == 1
    ((note, example),) = [(n.reason, n.examples) for n in result.noted if n.side == "category"]
    assert (note, example) == ("spaces", ("' cat'",))
    with pytest.warns(UserWarning, match="white space around it"):
        (row,) = to_finetuning_rows(truth)
    assert (row["prefix"], row["suffix"].split()[-1]) == ("detect cat", "cat")
