"""``palidecode demo``: the bundled model on bundled pictures, or bundled answers without torch."""
