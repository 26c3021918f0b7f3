"""Constraints of a sweep: comparisons of what can be counted before a trial starts.

    comparison = sum ("<=" | ">=" | "<" | ">" | "==") sum
    sum        = product (("+" | "-") product)*
    product    = factor (("*" | "/") factor)*
    factor     = number | quantity | "-" factor | "(" sum ")"

Read by hand and computed in exact fractions: a sweep file runs no code.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TypeAlias

from ressa.errors import SpecError, did_you_mean
from ressa.sparsity import (
    TOWERS,
    Allocation,
    Inventory,
    exact_fraction,
    format_fraction,
    tower_zeros,
)

QUANTITIES: Mapping[str, str] = {
    "sparsity": "pruned weights / prunable weights",
    "density": "1 − sparsity",
    "kept": "prunable weights that stay, a count",
    "whole_sparsity": "pruned weights / all parameters of the model",
    "whole_density": "1 − whole_sparsity",
    "vision_sparsity": "the same of the vision tower",
    "vision_density": "1 − vision_sparsity",
    "vision_kept": "prunable weights of the vision tower that stay",
    "language_sparsity": "the same of the language tower",
    "language_density": "1 − language_sparsity",
    "language_kept": "prunable weights of the language tower that stay",
}
"""What a constraint may name; all but the counts are fractions in [0, 1]."""

_LONGEST = 200  # characters: also bounds how deep parentheses go
_COMPARISONS: Mapping[str, Callable[[Fraction, Fraction], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
}
_ARITHMETIC: Mapping[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_TOKEN = re.compile(r"\s*(<=|>=|==|[<>+\-*/()]|[A-Za-z_]\w*|[0-9][0-9.]*|\.[0-9]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Operation:
    sign: str
    left: "Expression"
    right: "Expression"


Expression: TypeAlias = Fraction | str | _Operation
"""A number, the name of a quantity, or two expressions and what is done to them."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """Two expressions that are compared."""

    text: str
    left: Expression
    sign: str
    right: Expression

    @property
    def quantities(self) -> frozenset[str]:
        """The quantities that it names."""
        return frozenset((*_named(self.left), *_named(self.right)))

    def unmet(self, counted: Mapping[str, Fraction]) -> str | None:
        """Says why a trial is excluded; None if it is not.

        Args:
            counted: the trial's quantities, without those that nobody knows before it ran.
        """
        unknown = sorted(self.quantities - counted.keys())
        if unknown:
            return f"{self.text}: with group: all {unknown[0]} is not known before a trial ran"
        try:
            left, right = (_value(side, counted) for side in (self.left, self.right))
        except ZeroDivisionError:
            return f"{self.text}: it divides by zero here"
        if _COMPARISONS[self.sign](left, right):
            return None
        values = ", ".join(f"{name} is {_shown(counted[name])}" for name in sorted(self.quantities))
        return f"{self.text}: {values}"


def _named(expression: Expression) -> Iterator[str]:
    if isinstance(expression, str):
        yield expression
    elif isinstance(expression, _Operation):
        yield from _named(expression.left)
        yield from _named(expression.right)


def _value(expression: Expression, counted: Mapping[str, Fraction]) -> Fraction:
    if isinstance(expression, Fraction):
        return expression
    if isinstance(expression, str):
        return counted[expression]
    left, right = _value(expression.left, counted), _value(expression.right, counted)
    return _ARITHMETIC[expression.sign](left, right)


def _shown(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):.4g}"


@lru_cache(maxsize=256)
def parse_constraint(text: str) -> Constraint:
    """Reads a constraint such as "density >= 0.4".

    Raises:
        ValueError: it is none; the message says what is expected and where.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"at most {_LONGEST} characters, got {len(text)}.")
    return _Reader(text).comparison()


class _Reader:
    """Reads one text from left to right."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def comparison(self) -> Constraint:
        left = self._sum()
        sign = self._next()
        if sign not in _COMPARISONS:
            raise self._unexpected(sign, "one of <=, >=, <, >, ==")
        right = self._sum()
        rest = self._next()
        if rest:
            raise self._unexpected(rest, "the end of the comparison")
        constraint = Constraint(self._text.strip(), left, sign, right)
        _check_sense(constraint)
        return constraint

    def _peek(self) -> str:
        match = _TOKEN.match(self._text, self._at)
        if match is not None:
            return match[1]
        return self._text[self._at :].strip()[:1]  # "" at the end, else what is no token

    def _next(self) -> str:
        token = self._peek()
        match = _TOKEN.match(self._text, self._at)
        self._at = match.end() if match is not None else len(self._text)
        return token

    def _sum(self) -> Expression:
        found = self._product()
        while self._peek() in ("+", "-"):
            found = _Operation(self._next(), found, self._product())
        return found

    def _product(self) -> Expression:
        found = self._factor()
        while self._peek() in ("*", "/"):
            found = _Operation(self._next(), found, self._factor())
        return found

    def _factor(self) -> Expression:
        token = self._next()
        if token == "-":
            return _Operation("-", Fraction(0), self._factor())
        if token == "(":
            found = self._sum()
            closing = self._next()
            if closing != ")":
                raise self._unexpected(closing, "')'")
            return found
        if token[:1].isdigit() or (token[:1] == "." and len(token) > 1):
            try:
                return exact_fraction(token)
            except SpecError:
                raise ValueError(f"{token!r} is no number, in {self._text!r}.") from None
        if token in QUANTITIES:
            return token
        if token.isidentifier():
            raise ValueError(
                f"nothing that can be counted before a trial starts is called {token!r}."
                f"{did_you_mean(token, QUANTITIES)} Known: {', '.join(QUANTITIES)}."
            )
        raise self._unexpected(token, "a number or a quantity such as density")

    def _unexpected(self, token: str, expected: str) -> ValueError:
        given = repr(token) if token else "the end"
        return ValueError(
            f"{expected} expected, got {given}, in {self._text!r}. "
            "Write a comparison, such as density >= 0.4."
        )


def _check_sense(constraint: Constraint) -> None:
    """Refuses a comparison of no quantity, and of a fraction with what looks like percent."""
    if not constraint.quantities:
        raise ValueError(f"{constraint.text!r} names no quantity: {', '.join(QUANTITIES)}.")
    sides = (constraint.left, constraint.right)
    for name, number in (sides, sides[::-1]):
        is_share = isinstance(name, str) and not name.endswith("kept")
        if is_share and isinstance(number, Fraction) and number > 1:
            hint = f" Did you mean {format_fraction(number / 100)}?" if number <= 100 else ""
            raise ValueError(
                f"{name} is a fraction in [0, 1], compared with {format_fraction(number)}.{hint}"
            )


def quantities(
    inventory: Inventory, allocation: Allocation, *, is_shared: bool = False
) -> dict[str, Fraction]:
    """Counts what a trial loses and keeps, before it starts.

    Args:
        inventory: the model's layers.
        allocation: what each tower loses; where it is shared, both lose vision's target together.
        is_shared: whether nobody knows each tower's part before (`group: all`).
    """
    if is_shared:
        lost = {"": tower_zeros(inventory.layers, allocation.vision)}
    else:
        lost = {
            f"{tower}_": tower_zeros(inventory.tower(tower), getattr(allocation, tower))
            for tower in TOWERS
        }
        lost[""] = sum(lost.values())
    found: dict[str, Fraction] = {}
    for prefix, zeros in lost.items():
        weights = inventory.prunable(prefix.rstrip("_") or None)
        share = Fraction(zeros, weights) if weights else Fraction(0)
        found |= {
            f"{prefix}sparsity": share,
            f"{prefix}density": 1 - share,
            f"{prefix}kept": Fraction(weights - zeros),
        }
    whole = Fraction(lost[""], inventory.whole)
    return found | {"whole_sparsity": whole, "whole_density": 1 - whole}
