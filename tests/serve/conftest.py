"""A server of the tiny model, in this process."""

import pytest
from starlette.testclient import TestClient

from palidecode.pipeline import PaliDecoder
from palidecode.serve import Settings, create_app


@pytest.fixture(scope="session")
def decoder():
    return PaliDecoder.from_pretrained("demo", engine="onnx")


@pytest.fixture(scope="session")
def client(decoder):
    with TestClient(create_app(decoder, Settings()), base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture(scope="session")
def bare():
    """A server without a model."""
    with TestClient(create_app(None), base_url="http://127.0.0.1:8000") as client:
        yield client
