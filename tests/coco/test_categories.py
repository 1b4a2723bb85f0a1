import pytest

from palidecode import CategoryMap, InputError
from palidecode.coco.categories import ALIASES, IRREGULAR, fold

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
    with pytest.raises(InputError, match="none of the 10 categories"):
        CategoryMap(COCO, unmapped="error").id_of(label)


@pytest.mark.parametrize("label", ["cellphone tower", "gras", "s", "bu", "busy", "per son"])
def test_loose_does_not_guess(label):
    mapping = CategoryMap(COCO, match="loose", unmapped="drop")
    assert mapping.id_of(label) is None
    assert mapping.left_out == {label: 1}


def test_what_fits_two_categories_fits_none():
    mapping = CategoryMap(["axe", "axis"], match="loose", unmapped="drop", aliases={"axes": "axe"})
    assert mapping.id_of("axes") == 1
    mapping = CategoryMap(["Cat", "cat "], match="loose", unmapped="drop")
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
