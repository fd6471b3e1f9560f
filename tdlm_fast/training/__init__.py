"""The optimizer step and the trainer."""
