"""The names of sampling methods and unmasking schedules. Nothing here needs torch."""

COUNTED = ("random", "confidence", "top", "margin", "entropy")
METHODS = ("ancestral", *COUNTED)
UNMASKING = ("linear", "cosine", "cosine-maskgit")
