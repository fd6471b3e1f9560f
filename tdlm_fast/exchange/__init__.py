"""Give runs to other tools, and score models of theirs."""
