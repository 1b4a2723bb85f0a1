"""``palidecode demo``: the bundled answers about a bundled picture; a model on bundled scenes."""
