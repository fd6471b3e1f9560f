"""Compute intervals: Student's t, Wilson's for shares, and the mean over seeds. Nothing here needs torch."""

import math
from dataclasses import dataclass

NORMAL = 1.96  # the 97.5 % quantile that t_975 approaches
# 97.5 % quantiles of Student's t for 1, 2, … 30 degrees of freedom (published tables)
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
# Stands in for the spread over seeds where there is one seed, in nats: 1.96 times the spread of the advantage on
# likelihood over the three seeds of the published experiment (bench/results/wikitext-2-compare).
ONE_SEED = 0.05


def t_975(freedom: int) -> float:
    """Return the half-width of a 95 % interval in standard errors, for a spread with that many degrees of freedom."""
    if freedom < 1:
        raise ValueError("an interval needs two values or more")
    return T_975[freedom - 1] if freedom <= len(T_975) else NORMAL + 2.5 / freedom


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def over_seeds(values: list[float], errors: list[float], *, shared=False) -> Interval:
    """Return the 95 % interval of a mean over seeds, from one value per seed and its standard error of estimation.

    shared: all seeds were measured on one sample (the questions of a set), so more seeds do not average its error out.
    """
    n, mean = len(values), sum(values) / len(values)
    own = 1.96 * (sum(errors) if shared else math.sqrt(sum(e * e for e in errors))) / n
    if n == 1:
        half = own + ONE_SEED
    else:
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
        half = max(own, t_975(n - 1) * spread / math.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share observed in n trials (Wilson 1927)."""
    z = 1.96
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))
