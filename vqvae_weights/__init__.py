"""The shipped weights of the mask codec and their manifest, read by `palidecode.load_codec`."""
