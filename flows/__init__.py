"""Prefect flows and the command line `winnow`. No file here is named after a library: Prefect puts this folder on the
import path when it loads a flow."""

STOPPED = "winnow: stopped; run it again to go on where it was"
