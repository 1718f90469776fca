"""Read, store, split, augment and batch images."""
