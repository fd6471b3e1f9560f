"""From text to batches of token rows."""
