"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(
    os.environ.get("PALIDECODE_SHARED", Path(__file__).parents[2] / "shared" / "data")
).resolve()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real answers, annotations and masks that is too large or not ours to ship."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED} (set PALIDECODE_SHARED)")
    return SHARED
