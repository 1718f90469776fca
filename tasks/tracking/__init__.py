"""The only code that logs to MLflow: the client, the runs, and their content from the records."""
