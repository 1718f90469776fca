"""Build networks: `backbones` by name, `classifier_head` finds and replaces the last layer."""
