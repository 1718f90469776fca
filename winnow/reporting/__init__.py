"""The report of a run: records in, plots and one self-contained HTML page out. Start with `run_page`."""
