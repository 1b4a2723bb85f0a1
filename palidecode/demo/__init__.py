"""``palidecode demo``: bundled answers about a bundled picture, and a model on bundled scenes."""
