"""Scripts that make each published table; see README.md."""
