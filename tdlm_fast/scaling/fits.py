"""Fit laws to the figures of a sweep, with 95 % intervals and residuals, or refuse where too few points are known.

log y = c + b_1 log x_1 + … + b_k log x_k + error         power_law
D' = U + U R (1 - exp(-(E - 1) / R))                      effective tokens (Muennighoff et al. 2023)
loss = a + b D'^-p                                        repetition, over R and p
"""

import math

import numpy as np

from ..statistics import t_975

LEAST = 4  # uncensored points; fewer are refused


def power_law(y: list[float], *xs: list[float]) -> dict:
    """Fit y = exp(c) prod x_i^b_i by least squares of logarithms.

    Returns {"n", "slopes": [{"value", "low", "high"}], "constant", "residuals", "covariance", "variance"}, the last two
    of the constants and of a residual, or {"n", "refused"} where there are fewer than LEAST points, too few for the
    slopes, or an x that does not vary independently.
    """
    n, k = len(y), len(xs)
    if n < max(LEAST, k + 2):
        return {"n": n, "refused": f"{n} uncensored points; at least {max(LEAST, k + 2)} are needed"}
    A = np.column_stack([np.ones(n), *(np.log(x) for x in xs)])
    if np.linalg.matrix_rank(A) < k + 1:
        return {"n": n, "refused": "the points do not vary along every axis"}
    b, *_ = np.linalg.lstsq(A, np.log(y), rcond=None)
    residuals = np.log(y) - A @ b
    freedom = n - k - 1
    variance = float(residuals @ residuals) / freedom
    covariance = np.linalg.inv(A.T @ A) * variance
    half = t_975(freedom) * np.sqrt(np.diag(covariance))
    slopes = [
        {"value": float(b[i]), "low": float(b[i] - half[i]), "high": float(b[i] + half[i])} for i in range(1, k + 1)
    ]
    return {
        "n": n, "slopes": slopes, "constant": float(b[0]), "residuals": [float(r) for r in residuals],
        "covariance": covariance.tolist(), "variance": variance,
    }  # fmt: skip


def predict(fit: dict, *x: float) -> dict:
    """Return {"value", "low", "high"}: y of a power_law at x, and the 95 % interval of one further observation."""
    row = np.array([1.0, *np.log(x)])
    middle = float(row @ [fit["constant"], *(s["value"] for s in fit["slopes"])])
    error = math.sqrt(fit["variance"] + float(row @ np.array(fit["covariance"]) @ row))
    half = t_975(fit["n"] - len(row)) * error
    return {k: math.exp(min(v, 700.0)) for k, v in (("value", middle), ("low", middle - half), ("high", middle + half))}


def effective_tokens(unique: np.ndarray, epochs: np.ndarray, half: float) -> np.ndarray:
    """Return D', the fresh tokens that are worth as much as `epochs` passes over `unique` tokens, at R = half."""
    return unique + unique * half * -np.expm1(-(np.maximum(epochs, 1.0) - 1) / half)


def repetition(unique: list[float], epochs: list[float], losses: list[float]) -> dict:
    """Fit R of effective_tokens by its profile: for each R and p on a grid, a and b by least squares.

    Returns {"n", "R": {"value", "low", "high"}, "residuals"}; "low" or "high" is None where the profile has no such end
    on the grid, from 0.5 to 5,000. Refused below LEAST + 2 points, as four constants are fitted.
    """
    n = len(losses)
    if n < LEAST + 2:
        return {"n": n, "refused": f"{n} points; at least {LEAST + 2} are needed"}
    u, e, y = (np.asarray(v, dtype=float) for v in (unique, epochs, losses))
    grid, powers = np.geomspace(0.5, 5000, 161), np.linspace(0.05, 1.0, 39)[:, None]
    sums, fits = [], []
    for half in grid:
        d = effective_tokens(u, e, half)
        x = (d / d.min()) ** -powers  # (powers, n): a line in x for each power
        x -= x.mean(1, keepdims=True)
        spread = (x * x).sum(1)
        slope = np.divide(x @ (y - y.mean()), spread, out=np.zeros_like(spread), where=spread > 1e-20)
        r = y - y.mean() - slope[:, None] * x
        squares = (r * r).sum(1)
        best = int(np.argmin(squares))
        sums.append(float(squares[best]))
        fits.append(r[best])
    i = int(np.argmin(sums))
    limit = sums[i] * (1 + t_975(n - 4) ** 2 / (n - 4)) if n > 4 else math.inf
    inside = [j for j, s in enumerate(sums) if s <= limit]
    low = None if inside[0] == 0 else float(grid[inside[0] - 1])
    high = None if inside[-1] == len(grid) - 1 else float(grid[inside[-1] + 1])
    return {
        "n": n, "R": {"value": float(grid[i]), "low": low, "high": high}, "residuals": [float(r) for r in fits[i]],
    }  # fmt: skip
