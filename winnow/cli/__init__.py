"""The command line `winnow`: one command per file. The outermost layer."""
