"""Likelihoods, the published metric, diagnostics and accuracy on evaluation sets."""
