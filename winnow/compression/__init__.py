"""Methods that make a network smaller or faster: one file each, named as in params.yaml."""
