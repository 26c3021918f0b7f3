"""How many weights a tower loses: targets, allocations and budgets, counted as exact integers.

One rule everywhere. A tower of P prunable weights at sparsity s loses round-half-up(s·P) of them,
shared out over its rows (or matrices) by largest remainder in the fixed order of its layers. A
pattern N:M keeps at most N of each aligned group of M inputs and is exempt from the rule. All
arithmetic is on integers and fractions: `int(0.29 * 100)` is 28.

`counting: reference` is the other rule: the floor of each row's (or matrix's) share, as the papers'
code has it, and the tower then loses what it loses.
"""

import fnmatch
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Self

from ressa.errors import InfeasibleAllocation, SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tower = Literal["vision", "language"]
TOWERS: tuple[Tower, Tower] = ("vision", "language")

Group = Literal["row", "matrix", "tower", "all"]
"""Where weights compete: within a row, a matrix, a whole tower, or over both towers together."""

Counting = Literal["exact", "reference"]
"""exact: the tower's count is met to the weight; reference: a row loses the floor of its share."""

_PATTERN = re.compile(r"(\d{1,4}):(\d{1,4})")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_QUOTIENT = re.compile(r"-?(\d{1,40})/(\d{1,40})")
_LONGEST_NUMBER = 40  # characters; Python refuses to read integers of thousands of digits
_DECIMAL_PLACES = 12  # a longer decimal reads worse than the quotient


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """One prunable matrix of a tower."""

    name: str
    """Qualified name of the module that owns the weight."""
    tower: Tower
    block: int
    """Index of its transformer block in the tower; an encoder's blocks come before a decoder's."""
    rows: int
    """Output features."""
    columns: int
    """Input features."""

    @property
    def weights(self) -> int:
        """How many weights the matrix has."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What can be pruned in a model: its layers in fixed order, vision before language."""

    layers: tuple[LayerShape, ...]
    parameters: Mapping[str, int] = field(hash=False)
    """All parameters of each part (vision, connector, language, other), prunable or not."""
    modules: Mapping[str, Sequence[str]] = field(default_factory=dict, compare=False)
    """The modules, or single parameters, that each part consists of."""
    vocabulary: int = field(default=0, compare=False)
    """How many tokens the language model has logits of; 0 if its config does not say."""

    def __post_init__(self) -> None:
        towers = [layer.tower for layer in self.layers]
        if towers != sorted(towers, key=TOWERS.index):
            raise ValueError("an inventory lists its vision layers before its language layers")
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise ValueError("an inventory names each layer once")

    def tower(self, tower: str) -> tuple[LayerShape, ...]:
        """Returns the layers of one tower."""
        return tuple(layer for layer in self.layers if layer.tower == tower)

    def prunable(self, tower: str | None = None) -> int:
        """Counts the prunable weights of one tower, or of both."""
        return sum(layer.weights for layer in self.layers if tower in (None, layer.tower))

    @property
    def whole(self) -> int:
        """How many parameters the model has, prunable or not."""
        return sum(self.parameters.values())

    def to_json(self) -> str:
        """Writes the inventory as JSON text, one layer a line."""
        layers = ",\n".join(f"    {json.dumps(asdict(layer))}" for layer in self.layers)
        lines = [
            f'  "{name}": {json.dumps(dict(getattr(self, name)))},'
            for name in ("parameters", "modules")
        ]
        lines.append(f'  "vocabulary": {self.vocabulary},')
        return "\n".join(["{", *lines, f'  "layers": [\n{layers}\n  ]', "}", ""])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote."""
        content = json.loads(text)
        layers = tuple(LayerShape(**layer) for layer in content["layers"])
        return cls(
            layers=layers,
            parameters=content["parameters"],
            modules=content.get("modules", {}),
            vocabulary=content.get("vocabulary", 0),
        )


@dataclass(frozen=True, slots=True)
class Pattern:
    """N:M sparsity: at most `kept` non-zeros in each aligned group of `group` inputs."""

    kept: int
    group: int

    def __post_init__(self) -> None:
        if not 1 <= self.kept < self.group:
            raise SpecError(
                f"a pattern N:M keeps N of every M weights, 1 ≤ N < M, got '{self}'. "
                "To keep or prune everything, write the sparsity 0 or 1."
            )

    @property
    def sparsity(self) -> Fraction:
        """The share of weights that is zero, 1 − N/M."""
        return Fraction(self.group - self.kept, self.group)

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"


@dataclass(frozen=True, slots=True)
class Target:
    """What one tower loses: an exact fraction of its prunable weights, or an N:M pattern."""

    sparsity: Fraction
    pattern: Pattern | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity <= 1:
            raise SpecError(out_of_range(self.sparsity))
        if self.pattern is not None and self.pattern.sparsity != self.sparsity:
            raise ValueError(f"pattern {self.pattern} is not sparsity {self.sparsity}")

    @classmethod
    def parse(cls, value: "str | int | Decimal | Fraction | Target") -> "Target":
        """Reads a target such as "0.5", "2:4", "1/3", 0 or Decimal("0.7")."""
        if isinstance(value, Target):
            return value
        match = _PATTERN.fullmatch(str(value).strip())
        if match:
            pattern = Pattern(int(match[1]), int(match[2]))
            return cls(pattern.sparsity, pattern)
        return cls(exact_fraction(value))

    def __str__(self) -> str:
        return str(self.pattern) if self.pattern else format_fraction(self.sparsity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """How the sparsity of a model is split over its towers."""

    vision: Target
    language: Target


def exact_fraction(value: str | int | Decimal | Fraction) -> Fraction:
    """Returns the exact value of a decimal, an integer or a quotient "p/q"; refuses floats."""
    if isinstance(value, bool | float):
        raise SpecError(f"a sparsity is text, an integer or an exact decimal, got {value!r}.")
    text = str(value).strip()
    is_number = len(text) <= _LONGEST_NUMBER and _NUMBER.fullmatch(text)
    if is_number or (_QUOTIENT.fullmatch(text) and int(text.split("/")[1])):
        value = Fraction(text)
        # Text stays short: whatever is read here can be written and read again.
        if max(abs(value.numerator), value.denominator) < 10**_LONGEST_NUMBER:
            return value
    raise SpecError(
        f"a sparsity is a fraction in [0, 1] such as 0.5 or 1/3, "
        f"or a pattern such as '2:4', got {text[:_LONGEST_NUMBER]!r}."
    )


def format_fraction(value: Fraction) -> str:
    """Writes a fraction so that it reads back exactly: a short decimal, else a quotient."""
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest != 1 or places > _DECIMAL_PLACES:
        return str(value)
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def out_of_range(value: Fraction) -> str:
    """Says that a sparsity must lie in [0, 1]; hints at the fraction when it looks like percent."""
    hint = f" Did you mean {format_fraction(value / 100)}?" if 1 < value <= 100 else ""
    return f"a fraction in [0, 1], got {format_fraction(value)}.{hint}"


def round_half_up(value: Fraction) -> int:
    """Rounds to the nearest integer, halves upwards."""
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def packed_bytes(layer: LayerShape, kept: int, pattern: Pattern | None, itemsize: int) -> int:
    """Counts the bytes of a matrix of which only the weights that stay are stored.

    An N:M matrix holds N values of each group of M, zeros among them too, and for each its place in
    the group, ⌈log2 M⌉ bits. Any other that lost weights holds those that stay, and a bit for each
    place that says whether its weight does. One that lost none holds its weights.

    Args:
        layer: its shape.
        kept: weights that stay.
        pattern: N:M, if that was asked.
        itemsize: bytes of a weight.
    """
    if pattern is not None:
        slots = layer.weights // pattern.group * pattern.kept
        places = slots * (pattern.group - 1).bit_length()
        return slots * itemsize + -(-places // 8)
    return kept * itemsize + (0 if kept == layer.weights else -(-layer.weights // 8))


def zeros_per_row(
    layers: Sequence[LayerShape],
    target: Target,
    *,
    shares: Sequence[Fraction] | None = None,
    counting: Counting = "exact",
) -> "list[NDArray[np.int64]]":
    """Shares a tower's zeros out over its rows.

    Each row of `columns` inputs loses ⌊s·columns⌋ or ⌈s·columns⌉ weights, s being its matrix's
    sparsity, and the tower exactly `tower_zeros(layers, target)`. The rows with the largest
    remainder lose the extra one; among equal remainders the first layers, and in a layer the first
    rows, do.

    Args:
        layers: the tower's layers.
        target: what the tower loses.
        shares: each layer's sparsity where they differ, of weighted mean `target.sparsity`;
            None gives all of them the target's.
        counting: `reference` leaves every row at the floor.

    Returns:
        One array `[rows]` for each layer.
    """
    import numpy as np  # here, so that reading a sweep file does not pay for numpy

    counts = []
    units = [layer.rows for layer in layers]
    for layer, (floor, extra) in zip(
        layers, _floors(layers, target, shares, units, counting), strict=True
    ):
        zeros = np.full(layer.rows, floor, dtype=np.int64)
        zeros[:extra] += 1
        counts.append(zeros)
    return counts


def zeros_per_matrix(
    layers: Sequence[LayerShape],
    target: Target,
    *,
    shares: Sequence[Fraction] | None = None,
    counting: Counting = "exact",
) -> list[int]:
    """Shares a tower's zeros out over its matrices, by the rule of `zeros_per_row`."""
    floors = _floors(layers, target, shares, [1] * len(layers), counting)
    return [floor + extra for floor, extra in floors]


def _floors(
    layers: Sequence[LayerShape],
    target: Target,
    shares: Sequence[Fraction] | None,
    units: Sequence[int],
    counting: Counting,
) -> Iterator[tuple[int, int]]:
    """Yields what each of a layer's units (its rows, or itself) loses, and how many lose one more.

    Raises:
        ValueError: the shares do not come to the target.
    """
    shares = [target.sparsity] * len(layers) if shares is None else shares
    exact = [
        share * (layer.weights // unit)
        for layer, share, unit in zip(layers, shares, units, strict=True)
    ]
    floors = [math.floor(share) for share in exact]
    extras = [0] * len(layers)
    left = tower_zeros(layers, target) if counting == "exact" else 0
    if counting == "exact":
        left -= sum(floor * unit for floor, unit in zip(floors, units, strict=True))
        # Stable, so that equal remainders are served in the order of the layers.
        for index in sorted(range(len(layers)), key=lambda index: floors[index] - exact[index]):
            extras[index] = max(0, min(left, units[index])) if exact[index] > floors[index] else 0
            left -= extras[index]
    if left:
        raise ValueError(f"the layers' shares miss the tower's target {target} by {left} zeros")
    return zip(floors, extras, strict=True)


def check_table(
    layers: Sequence[LayerShape], target: Target, table: Mapping[str, Fraction]
) -> Fraction:
    """Returns the sparsity of the layers that a table of layers leaves out, exactly.

    The listed layers lose round-half-up of their share each, the others what the tower's count
    leaves, evenly.

    Args:
        layers: the tower's layers.
        target: what the tower loses, a fraction.
        table: sparsities of some layers, or of all, by name.

    Returns:
        Zeros left / weights left; the target's sparsity if nothing is left.

    Raises:
        InfeasibleAllocation: the rest would lose less than nothing or more than it has, or the
            table lists every layer and comes to another count than the tower's.
    """
    zeros = tower_zeros(layers, target)
    listed = [layer for layer in layers if layer.name in table]
    weights = sum(layer.weights for layer in layers)
    rest = weights - sum(layer.weights for layer in listed)
    tower = layers[0].tower
    if not rest:
        count = round_half_up(sum((table[x.name] * x.weights for x in listed), Fraction(0)))
        if count != zeros:
            raise InfeasibleAllocation(
                f"{tower}: the table lists every layer and comes to sparsity {count / weights:.4f} "
                f"({count} zeros), the tower is to lose {zeros / weights:.4f} ({zeros}). Leave a "
                f"layer out, which then makes up for it, or ask for {tower} sparsity "
                f"{format_fraction(Fraction(count, weights))}."
            )
        return target.sparsity
    left = zeros - sum(round_half_up(table[layer.name] * layer.weights) for layer in listed)
    if not 0 <= left <= rest:
        raise InfeasibleAllocation(
            f"{tower}: the table's layers come to {zeros - left} zeros, the tower is to lose "
            f"{zeros}: its other layers would have sparsity {left / rest:.3f}, which is to be in "
            f"[0, 1]. List {'lower' if left < 0 else 'higher'} sparsities, or ask for "
            f"{'more' if left < 0 else 'fewer'} zeros of the tower."
        )
    return Fraction(left, rest)


def listed_layers(
    layers: Iterable[LayerShape], table: Mapping[str, Decimal]
) -> dict[str, Fraction]:
    """Finds the layers that a table of name patterns means, such as `*.layers.0.*: 0.3`.

    Args:
        layers: those that may be meant.
        table: sparsities by name or by a pattern of `*`, `?` and `[…]`, case as written.

    Raises:
        SpecError: two entries mean one layer.
    """
    found: dict[str, Fraction] = {}
    for layer in layers:
        entries = [entry for entry in table if fnmatch.fnmatchcase(layer.name, entry)]
        if len(entries) > 1:
            raise SpecError(
                f"layer {layer.name} is listed by {' and by '.join(map(repr, entries))}. Once each."
            )
        if entries:
            found[layer.name] = Fraction(table[entries[0]])
    return found


def check_pattern(layers: Iterable[LayerShape], pattern: Pattern) -> None:
    """Refuses a pattern N:M on layers whose input width is not a multiple of M, naming them all.

    Raises:
        InfeasibleAllocation: at least one layer is not divisible.
    """
    ragged = [layer for layer in layers if layer.columns % pattern.group]
    if ragged:
        names = ", ".join(f"{layer.name} ({layer.columns} inputs)" for layer in ragged)
        raise InfeasibleAllocation(
            f"pattern {pattern} needs layers whose number of inputs is a multiple of "
            f"{pattern.group}; these are not: {names}. Use a fraction for this tower, or a "
            f"pattern N:M whose M divides these widths."
        )


def tower_zeros(layers: Sequence[LayerShape], target: Target) -> int:
    """Counts the weights that a tower loses at a target.

    Raises:
        InfeasibleAllocation: the target is a pattern that does not divide the tower's layers.
    """
    if target.pattern is not None:
        check_pattern(layers, target.pattern)
    return round_half_up(target.sparsity * sum(layer.weights for layer in layers))


def solve_language(inventory: Inventory, budget: Fraction, vision: Target) -> Target:
    """Finds the language sparsity that makes the whole exactly as sparse as the budget says.

    Args:
        inventory: the model's layers.
        budget: sparsity over all prunable weights of both towers, in [0, 1].
        vision: what the vision tower loses.

    Raises:
        InfeasibleAllocation: the language tower would have to lose less than nothing, or more
            weights than it has.
    """
    return _solve(inventory, budget, given="vision", target=vision, solved="language")


def solve_vision(inventory: Inventory, budget: Fraction, language: Target) -> Target:
    """Finds the vision sparsity that meets the budget; the mirror of `solve_language`."""
    return _solve(inventory, budget, given="language", target=language, solved="vision")


def _solve(
    inventory: Inventory, budget: Fraction, given: Tower, target: Target, solved: Tower
) -> Target:
    if not 0 <= budget <= 1:
        raise InfeasibleAllocation(f"budget: {out_of_range(budget)}")
    weights = inventory.prunable(solved)
    zeros = round_half_up(budget * inventory.prunable())
    left = zeros - tower_zeros(inventory.tower(given), target)
    if 0 <= left <= weights and weights:
        return Target(Fraction(left, weights))
    got = f"{left / weights:.3f}" if weights else "none"
    reason = f"more zeros than {solved} has weights" if left > 0 else "fewer zeros than none"
    raise InfeasibleAllocation(
        f"{solved} sparsity is a fraction in [0, 1], got {got}: "
        f"budget {format_fraction(budget)} with {given} {target} asks for {reason}"
    )
