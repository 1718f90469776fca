"""What a run will take: each step's work tried in small and timed."""
