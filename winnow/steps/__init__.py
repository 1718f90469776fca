"""The steps of a run: one function each, (config, inputs, out) -> record."""
