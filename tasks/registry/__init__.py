"""Models in MLflow's registry: versions, aliases, champion and challenger, approval, accounts."""
