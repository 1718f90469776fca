"""Prefect flows. No file here is named after a library: Prefect puts this folder on the import path to load a flow."""

STOPPED_MESSAGE = "winnow: stopped; run it again to resume"
