"""Read what a model wrote: text or token ids to objects, with numpy alone."""
