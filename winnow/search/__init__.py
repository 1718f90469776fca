"""Looking for the smallest, fastest candidates that keep dense's accuracy, measured and not guessed."""
