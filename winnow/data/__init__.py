"""Images: where they come from, how they are stored, split, augmented and fed."""
