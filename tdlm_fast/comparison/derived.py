"""Compute the derived constants of a claim file again, from its figures and formulas.

    {"figures": {"ppl": 382.74}, "derived": [{"id": "loss", "value": "5.947", "formula": "ln(ppl)"}]}   ->   5.94735…

A formula is arithmetic: + - * / **, numbers, the names of figures, the ids of constants above it (spaces become _), and

    ln(x)  exp(x)  sqrt(x)  floor(x)  min(x, y)  max(x, y)
    integral(f)       the integral of f over m from 0 to 1, where f contains m
    total(rows, f)    the sum over n = 1, 2, … of rows[n - 1] times f, where f contains n

It is read as a Python expression whose every node is checked, and never run as code. A constant follows where the value
as it is written is the computed one, rounded to its digits.
"""

import ast
import math
import operator
import re
from dataclasses import dataclass

import numpy as np

POINTS = 120_000  # midpoints of an integral; a multiple of 6, so that the published weight bends between two of them
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.Pow: operator.pow}  # fmt: skip
FUNCTIONS = {
    "ln": (1, np.log), "exp": (1, np.exp), "sqrt": (1, np.sqrt), "floor": (1, np.floor), "min": (2, np.minimum),
    "max": (2, np.maximum),
}  # fmt: skip
LONGEST = 1000  # characters of a formula, whose depth they bound
OWN = ("integral", "total")
M = (np.arange(POINTS) + 0.5) / POINTS


@dataclass(frozen=True)
class Constant:
    id: str
    stated: str
    formula: str
    computed: float

    @property
    def follows(self) -> bool:
        digits = len(self.stated.partition(".")[2])
        return abs(self.computed - float(self.stated)) <= 0.5 * 10**-digits * (1 + 1e-9)

    def __str__(self) -> str:
        verdict = "pass" if self.follows else "FAIL"
        return f"{verdict}  {self.id}: {self.stated}, computed {self.computed:.8g} = {self.formula}"


def constants(case: dict) -> list[Constant]:
    """Return each derived constant of a claim file, computed again. Raises ValueError, naming the constant."""
    names: dict[str, float | list] = dict(case["figures"])
    out = []
    for i, entry in enumerate(case["derived"]):
        try:
            value = evaluate(entry["formula"], names)
        except ValueError as e:
            raise ValueError(f"derived[{i}].formula ({entry['id']}) {e}") from None
        out.append(Constant(entry["id"], entry["value"], entry["formula"], value))
        names[re.sub("[^a-z0-9]+", "_", entry["id"].lower())] = value
    return out


def evaluate(formula: str, names: dict) -> float:
    """Return the value of a formula. Raises ValueError where it is not one, or is not finite."""
    if len(formula) > LONGEST:
        raise ValueError(f"is longer than {LONGEST:,} characters")
    try:
        tree = ast.parse(formula, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{formula!r} is not arithmetic") from None
    with np.errstate(all="ignore"):
        try:
            value = float(_value(tree.body, names))
        except (OverflowError, ZeroDivisionError, TypeError, RecursionError) as e:
            raise ValueError(f"{formula!r} cannot be computed: {e}") from None
    if not math.isfinite(value):
        raise ValueError(f"{formula!r} is {value}")
    return value


def _value(node: ast.expr, names: dict):
    """Return the value of a node, an array over m inside of an integral."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise ValueError(f"contains {node.id}, which is neither a figure nor a constant above it")
        if isinstance(names[node.id], list):
            raise ValueError(f"contains the list {node.id} outside of total({node.id}, f)")
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, names)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _call(node.func.id, node.args, names)
    raise ValueError(f"contains {ast.unparse(node)}, which is not arithmetic")


def _call(name: str, args: list[ast.expr], names: dict):
    if name == "integral" and len(args) == 1:
        if "m" in names:
            raise ValueError("contains an integral inside of an integral")
        return float(np.mean(_value(args[0], names | {"m": M}) * np.ones(POINTS)))
    if name == "total" and len(args) == 2:
        rows = names.get(args[0].id) if isinstance(args[0], ast.Name) else None
        if not isinstance(rows, list):
            raise ValueError("contains total(rows, f) whose rows are not a list of the figures")
        return math.fsum(k * _value(args[1], names | {"n": float(n)}) for n, k in enumerate(rows, 1) if k)
    if name not in FUNCTIONS or len(args) != FUNCTIONS[name][0]:
        raise ValueError(f"contains {name} of {len(args)} values; known are {', '.join((*FUNCTIONS, *OWN))}")
    return FUNCTIONS[name][1](*(_value(arg, names) for arg in args))
