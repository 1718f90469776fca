"""The project's folder: paths and environment, locks, state files, processes."""
