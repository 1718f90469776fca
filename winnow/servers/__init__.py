"""The servers that winnow starts: local ones, a team's, and the HTTP server of `winnow serve`."""
