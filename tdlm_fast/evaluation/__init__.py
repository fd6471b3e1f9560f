"""Score a model: likelihoods, the published metric, diagnostics and accuracy on evaluation sets."""
