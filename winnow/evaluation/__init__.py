"""Quality of a network or a file, with its uncertainty: metrics, intervals, and drops against a reference."""
