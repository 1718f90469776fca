"""Decide which candidate may serve, warn of the decision's limits, and evaluate it on the test split."""
