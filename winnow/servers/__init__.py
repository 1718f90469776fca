"""Servers that winnow starts: local, of a team, and the HTTP server of `winnow serve`."""
