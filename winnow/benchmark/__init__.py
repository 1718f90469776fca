"""Speed of files on a machine: timing, the grid of cases, speed-ups with intervals, memory, int8 coverage."""
