"""The only code that knows DVC: stages, staleness, integrity of its cache, images fetched from S3."""
