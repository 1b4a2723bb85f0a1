"""The mask codec's shipped weights and their manifest; `palidecode.load_codec` reads them."""
