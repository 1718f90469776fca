"""Networks: `backbones` builds them by name, `heads` finds and swaps the last layer."""
