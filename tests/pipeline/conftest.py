"""Fixtures of this folder."""

import pytest

from tests.runtime.tiny_models import one_thread


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    with one_thread():
        yield
