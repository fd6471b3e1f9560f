"""A sweep: one plan of many runs, trained by any number of workers, and its report."""
