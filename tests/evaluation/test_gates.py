import math

import pytest

from palidecode.errors import InputError
from palidecode.evaluation.gates import below, read_limits

KNOWN = ("AP", "AP50", "boxacc@0.5")


def test_limits_are_read_and_compared():
    limits = read_limits(["AP=0.5", "boxacc@0.5=0.8"], KNOWN)
    assert limits == {"AP": 0.5, "boxacc@0.5": 0.8}
    assert below({"AP": 0.5, "boxacc@0.5": 0.79}, limits) == {"boxacc@0.5": 0.8}
    assert below({"AP": 0.9, "boxacc@0.5": 0.9}, limits) == {}


def test_a_number_that_is_missing_reaches_no_limit():
    limits = read_limits(["AP=-1", "AP50=0"], KNOWN)
    assert below({"AP": None, "AP50": math.nan}, limits) == limits


@pytest.mark.parametrize("texts", [["AP=0.9", "AP=0.1"], ["AP=0.1", "AP=0.9"]])
def test_the_highest_limit_of_a_name_counts(texts):
    assert read_limits(texts, KNOWN) == {"AP": 0.9}


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match=r"'mAP'; choose from AP, AP50, boxacc@0\.5"):
        read_limits(["mAP=0.5"], KNOWN)


@pytest.mark.parametrize("text", ["AP", "AP=", "AP=high", "AP=nan", "AP=0.5=0.6"])
def test_values_that_are_no_number_are_refused(text):
    with pytest.raises(InputError, match="not NAME=VALUE, for instance AP="):
        read_limits([text], KNOWN)


def test_a_perfect_number_reaches_1_in_spite_of_rounding():
    assert below({"AP": 0.9999999999999998}, {"AP": 1.0}) == {}
    assert below({"AP": 1 - 1e-8}, {"AP": 1.0}) == {"AP": 1.0}
