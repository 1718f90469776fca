"""Which candidate may serve, what to know before relying on it, and what the test split says of it."""
