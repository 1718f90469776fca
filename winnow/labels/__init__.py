"""Which images to label next, and which labels are probably wrong. Both work on features of a frozen network."""
