"""The command line `winnow` (main.py), one file per longer command. The outermost layer: it calls flows, tasks and
steps.
"""
