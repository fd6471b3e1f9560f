"""A run on disk: its folder, files, checkpoints and figures."""
