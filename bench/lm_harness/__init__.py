"""Accuracies beside those of EleutherAI's lm-evaluation-harness (`pip install lm_eval`)."""
