"""Scripts that measure each published table; see README.md."""
