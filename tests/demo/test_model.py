import hashlib
import json

from palidecode.pipeline.checkpoint import locate

FOLDER = locate("demo")[0]


def test_the_bundled_folder_is_what_its_manifest_says():
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    weights = (FOLDER / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == manifest["sha256"]
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12 * 2**20
    assert manifest["license"] == "Apache-2.0"
    assert "Font Awesome" in manifest["silhouettes"]
    curve = json.loads((FOLDER / "curve.json").read_text())
    assert curve[-1]["step"] == manifest["steps"]
    losses = [line["unseen"]["answer"] for line in curve if line["stage"] == "joint"]
    assert losses[-1] == min(losses) < 0.8 * losses[0]
