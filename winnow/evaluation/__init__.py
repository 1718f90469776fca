"""How good a network or a file is, and how surely: metrics, intervals, drops against a reference."""
