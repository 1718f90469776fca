"""The training loop, and fine-tuning on the label budget."""
