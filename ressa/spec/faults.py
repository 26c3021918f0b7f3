"""Says in our words what pydantic found: what was given, what is possible, what to do."""

from collections.abc import Iterable
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ressa.errors import did_you_mean
from ressa.spec.schema import SweepSpec
from ressa.spec.space import Choices, Range, SpecModel, shorten
from ressa.spec.yaml import Path

_BOUNDS = {"greater_than": ">", "greater_than_equal": "≥", "less_than": "<", "less_than_equal": "≤"}
_TYPES = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
}


def path_of(error: ErrorDetails) -> Path:
    """Returns which field an error is about; pydantic puts names of union members in between."""
    path = tuple(error["loc"])
    if path[:1] == ("space",) and len(path) > 2:
        path = path[:2] + path[3:]
    if path[:1] == ("objective",):
        path = path[:1] + path[2:]
    return path


def explain(error: ErrorDetails) -> str:
    """Returns the message for one of pydantic's errors."""
    kind, given, context = error["type"], error.get("input"), error.get("ctx", {})
    path = path_of(error)
    if kind == "extra_forbidden":
        if path[:1] == ("space",) and error["loc"][2] == "choices":
            return f"unknown key {quote(path[-1])}: choices stand alone, or low and high do."
        return unknown_key(path)
    if kind == "missing":
        return f"missing. {_description(path)}".strip()
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return _one_of(path, given, context["expected"])
    if kind in _BOUNDS:
        bound = next(iter(context.values()))
        return f"{_number(path)} {_BOUNDS[kind]} {bound:g}, got {quote(given)}."
    if kind == "model_type":
        if path[:1] == ("space",) and isinstance(given, list | tuple):
            return f"a list of values is written {{choices: [{', '.join(map(str, given))}]}}."
        return f"a mapping of {', '.join(keys_at(path))}, got {quote(given)}."
    if kind == "string_type":
        hint = f" Put it in quotes: '{given}'." if isinstance(given, int | Decimal) else ""
        return f"text, got {quote(given)}.{hint}"
    if kind == "string_pattern_mismatch":
        return f"a name of a-z, 0-9, - and _, got {quote(given)}.{_slug_hint(given)}"
    if kind in _TYPES:
        return f"{_TYPES[kind]}, got {quote(given)}.{_whole_hint(kind, given)}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty."
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {quote(given)}."


def unknown_key(path: Path) -> str:
    """Says that a key is unknown, and which one may be meant: a sibling, or one elsewhere."""
    *parents, name = path
    known = keys_at(tuple(parents))
    hint = did_you_mean(str(name), known)
    if not hint:
        elsewhere = [".".join(p) for p in _all_paths() if p[-1] == name]
        hint = f" Did you mean {elsewhere[0]!r}?" if len(elsewhere) == 1 else ""
    return f"unknown key {shorten(name)}.{hint} Known: {', '.join(known)}."


def quote(value: Any) -> str:
    """Writes a value as a message quotes it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return shorten(value)


def keys_at(path: Path) -> list[str]:
    """Returns the keys that a mapping of the sweep file may have."""
    model = _model_at(path)
    return list(model.by_key()) if model is not None else []


def _model_at(path: Path) -> type[SpecModel] | None:
    if path[:1] == ("space",):
        return Range if len(path) == 2 else None
    model: type[SpecModel] | None = SweepSpec
    for key in path:
        if model is not None and isinstance(key, str):  # an entry of a list is what the list holds
            field = model.by_key().get(key)
            model = None if field is None else _model_in(field.annotation)
    return model


def _model_in(annotation: Any) -> type[SpecModel] | None:
    """Finds the model inside list and optional types."""
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        return annotation
    if get_origin(annotation) in (tuple, Annotated, Union, UnionType):
        return next(filter(None, map(_model_in, get_args(annotation))), None)
    return None


def _all_paths(
    model: type[SpecModel] = SweepSpec, prefix: tuple[str, ...] = ()
) -> Iterable[tuple[str, ...]]:
    for name, field in model.by_key().items():
        yield (*prefix, name)
        inner = _model_in(field.annotation)
        if inner is not None and inner not in (Choices, Range):
            yield from _all_paths(inner, (*prefix, name))


def _field_at(path: Path) -> FieldInfo | None:
    model = _model_at(path[:-1])
    return model.by_key().get(str(path[-1])) if model is not None else None


def _description(path: Path) -> str:
    field = _field_at(path)
    return (field.description or "") if field is not None else ""


def _one_of(path: Path, given: Any, expected: str) -> str:
    if path == ("ressa",):
        return f"this version of ressa reads format 1, got {quote(given)}."
    names = [name.strip("' ") for name in expected.replace(" or ", ", ").split(",")]
    hint = did_you_mean(given, names) if isinstance(given, str) else ""
    allowed = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    return f"{allowed}, got {quote(given)}.{hint}"


def _number(path: Path) -> str:
    field = _field_at(path)
    return "a number" if field is not None and _holds_float(field.annotation) else "an integer"


def _holds_float(kind: Any) -> bool:
    """Whether a type is float, or one of several of which one is."""
    return kind is float or any(map(_holds_float, get_args(kind)))


def _whole_hint(kind: str, given: Any) -> str:
    is_whole = isinstance(given, Decimal) and given.is_finite() and given == int(given)
    return f" Did you mean {int(given)}?" if kind == "int_type" and is_whole else ""


def _slug_hint(given: Any) -> str:
    slug = slugify(str(given))
    return f" Did you mean '{slug}'?" if slug else ""


def slugify(text: str) -> str:
    """Turns text into a name of a sweep, as near as possible."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in text.lower())
    return kept.strip("-_")[:64]
