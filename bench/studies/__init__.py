"""Questions that need no clock: precision, estimators, unmasking schedules, the published metric."""
