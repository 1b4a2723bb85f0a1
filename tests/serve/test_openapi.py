"""The API's description against the API: every route, and random requests by schemathesis."""

import json
import subprocess
import sys

import pytest

from palidecode.serve.app import ROUTES
from tests.serve.running import server


def test_every_route_is_described(client):
    described = client.get("/openapi.json").json()
    methods = {
        (route.path, method.lower())
        for route in ROUTES
        for method in route.methods - {"HEAD"}
        if route.path != "/openapi.json"
    }
    assert {(path, name) for path, item in described["paths"].items() for name in item} == methods


def test_examples_are_answered(client):
    described = client.get("/openapi.json").json()
    for path, item in described["paths"].items():
        body = (
            item.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        )
        if body is not None and "…" not in json.dumps(body["example"], ensure_ascii=False):
            wanted = 200 if path != "/predict" else 400  # its picture is in no --images
            assert client.post(path, json=body["example"]).status_code == wanted, path


@pytest.mark.slow
def test_random_requests_fit_the_description(tmp_path):
    """Requests that fit the schema may be refused: a picture of random bytes is none."""
    with server("--max-new-tokens", "64") as running:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{running.url}openapi.json"]
        command += [
            "--seed",
            "5",
            "--max-examples",
            "30",
            "--exclude-checks",
            "positive_data_acceptance",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "14 selected" in done.stdout, done.stdout[-2000:]
