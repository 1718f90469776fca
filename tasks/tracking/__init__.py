"""The only code that logs to MLflow: the client, runs, and what of the records they hold."""
