"""Many inputs, with stop and resume."""
