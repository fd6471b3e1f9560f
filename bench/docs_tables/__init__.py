"""Tables and pictures of README and docs, each drawn from files of bench/results."""
