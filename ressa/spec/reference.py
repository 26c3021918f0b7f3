"""The reference of sweep files, made from their models: a JSON Schema for editors, and a page.

`python -m ressa.spec.reference docs` writes both; `make docs` calls it. What checks a file for good
is `load_spec`: the JSON Schema knows no catalog, no layers and no rules about several fields.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ressa.catalog import MODELS
from ressa.spec import schema as models
from ressa.spec import space
from ressa.spec.resolve import complete

SCHEMA_FILE = "sweep.schema.json"
PAGE_FILE = "sweep-file.md"

_TEXT: JsonSchemaValue = {"type": "string"}
_NUMBER: JsonSchemaValue = {"type": "number"}
_SHARE: JsonSchemaValue = {"type": "number", "minimum": 0, "maximum": 1}
_SCALAR: JsonSchemaValue = {"type": ["number", "string", "boolean"]}
_POINT: JsonSchemaValue = {"type": "object", "minProperties": 1, "additionalProperties": _SCALAR}
_LAYERS: JsonSchemaValue = {
    "anyOf": [
        {"enum": list(models.LAYERWISE)},
        {"type": "object", "minProperties": 1, "additionalProperties": _SHARE},
    ]
}
_SHORT_FORMS: Mapping[Any, JsonSchemaValue] = {
    models._as_model: _TEXT,
    models._as_budget: _SHARE,
    models._as_texts: _TEXT,
    models._as_parts: _TEXT,
    space.as_space: _SCALAR,
}
"""What a file may say beside what a field holds, by the function that turns it into that."""
_ONLY_FORMS: Mapping[Any, JsonSchemaValue] = {
    models._as_share: _SHARE,
    models._as_layers: _LAYERS,
    models._as_layers_or_none: {"anyOf": [*_LAYERS["anyOf"], {"type": "null"}]},
    models._as_points: {"type": "array", "minItems": 1, "items": _POINT},
    space.exact_decimal: _NUMBER,
    space.one_scalar: _SCALAR,
}
"""All that a file may say, where a function alone decides."""
_FOLLOWS = {
    "SweepSpec": ("name", "space", "confirm", "objective", "baselines"),
    "Repair": ("train",),
    "DataRef": ("split", "samples"),
}
"""Fields whose defaults `complete` works out from others, by model."""


class _OfFiles(GenerateJsonSchema):
    """Says what stands in a file, before it is turned into what a spec holds."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def function_before_schema(
        self, schema: core_schema.BeforeValidatorFunctionSchema
    ) -> JsonSchemaValue:
        function = schema["function"]["function"]
        if function in _ONLY_FORMS:
            return _ONLY_FORMS[function]
        inner = self.generate_inner(schema["schema"])
        return {"anyOf": [_SHORT_FORMS[function], inner]} if function in _SHORT_FORMS else inner

    def function_plain_schema(
        self, schema: core_schema.PlainValidatorFunctionSchema
    ) -> JsonSchemaValue:
        return _ONLY_FORMS[schema["function"]["function"]]


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of sweep files: fields, types, ranges, defaults, meanings."""
    made = models.SweepSpec.model_json_schema(schema_generator=_OfFiles)
    definitions = made.pop("$defs")
    for model, described in {"SweepSpec": made, **definitions}.items():
        follow = _FOLLOWS.get(model, ())
        if "required" in described:
            described["required"] = [one for one in described["required"] if one not in follow]
        for name, value in described["properties"].items():
            if name in follow or "Default:" in value.get("description", ""):
                value.pop("default", None)
    made["anyOf"] = [{"required": ["space"]}, {"required": ["points"]}]
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **made, "title": "Sweep file of ressa", "$defs": definitions}


_HEAD = f"""\
# The sweep file, field by field

*Made from the spec's models by `make docs`; do not edit. The same as JSON Schema, for completion
and checks in an editor: [{SCHEMA_FILE}]({SCHEMA_FILE}), by a first line
`# yaml-language-server: $schema=../docs/{SCHEMA_FILE}`, the path from the sweep file to it.*

`ressa: 1`, `model` and `space` (or `points`) are all that a file needs. `ressa validate FILE` finds
every fault at once, with its line; `ressa plan FILE` shows what the file would run. Any field can
be changed for one run: `--set repair.steps=50`. YAML is read by version 1.2, without tags, anchors
and aliases; numbers are exact decimals. Complete files, each with its question:
[sweeps/](../sweeps/README.md).
"""


def page() -> str:
    """Returns the page that lists every field, as Markdown."""
    whole = json_schema()
    titles = _titles(whole)
    parts = [_HEAD, "## The file", _table(whole, whole, titles)]
    for name, title in titles.items():
        described = whole["$defs"][name]
        parts += [f"## {title}", _escaped(described["description"])]
        parts += [_table(described, whole, titles)]
    parts += ["## Defaults that follow from other fields", _following(), _catalog_table()]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _titles(whole: Mapping[str, Any]) -> dict[str, str]:
    """Headings of the models: where each stands in a file, in the order in which they are met."""
    found: dict[str, list[str]] = {}

    def visit(described: Mapping[str, Any], prefix: str) -> None:
        for field, value in described["properties"].items():
            for name, place in _referred(value, f"{prefix}{field}"):
                found.setdefault(name, []).append(place)
                visit(whole["$defs"][name], f"{place}.")

    visit(whole, "")
    titles = {name: ", ".join(f"`{place}`" for place in places) for name, places in found.items()}
    twice = [title for title in titles.values() if list(titles.values()).count(title) > 1]
    return {name: f"{t}: {name.lower()}" if t in twice else t for name, t in titles.items()}


def _referred(value: Any, place: str) -> list[tuple[str, str]]:
    """The models that a field's value may be, and how such a place is written."""
    if "$ref" in value:
        return [(value["$ref"].rpartition("/")[2], place)]
    found = []
    for union in ("anyOf", "oneOf"):
        for one in value.get(union, ()):
            found += [pair for pair in _referred(one, place) if pair not in found]
    if isinstance(value.get("additionalProperties"), Mapping):
        found += _referred(value["additionalProperties"], f"{place}.NAME")
    if isinstance(value.get("items"), Mapping):
        found += _referred(value["items"], f"{place}[]")
    return found


def _table(
    described: Mapping[str, Any], whole: Mapping[str, Any], titles: Mapping[str, str]
) -> str:
    required = described.get("required", ())
    lines = ["| field | values | default | meaning |", "|---|---|---|---|"]
    for name, value in described["properties"].items():
        # A field that is described as its model is leaves the words to it.
        own = whole["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})
        meaning = value.get("description", own.get("description", ""))
        default = "**required**" if name in required else _default(value)
        cells = (f"`{name}`", _values(value, titles), default, _escaped(meaning))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    of_models = isinstance(default, dict) or (default and isinstance(default, list | tuple))
    if "default" not in value or (of_models and "{" in json.dumps(default)):
        return ""
    return f"`{json.dumps(default, ensure_ascii=False)}`".replace('"', "")


def _values(value: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    if "$ref" in value:
        title = titles[value["$ref"].rpartition("/")[2]]
        return f"[mapping](#{_anchor(title)})"
    for union in ("anyOf", "oneOf"):
        if union in value:
            return " or ".join(dict.fromkeys(_values(one, titles) for one in value[union]))
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = value["type"]
    if isinstance(kind, list):
        return "a number, a text or true/false"
    if kind == "array":
        return f"list of {_values(value['items'], titles)}"
    if kind == "object":
        inner = value.get("additionalProperties")
        return f"names → {_values(inner, titles)}" if isinstance(inner, Mapping) else "mapping"
    return _WORDS[kind] + _range(value)


_WORDS = {
    "string": "text",
    "boolean": "true, false",
    "integer": "integer",
    "number": "number",
    "null": "null",
}


def _range(value: Mapping[str, Any]) -> str:
    bounds = (
        (" ≥ {}", "minimum"),
        (" > {}", "exclusiveMinimum"),
        (" ≤ {}", "maximum"),
        (" < {}", "exclusiveMaximum"),
    )
    said = [text.format(f"{value[key]:g}") for text, key in bounds if key in value]
    return ",".join(said)


def _anchor(heading: str) -> str:
    """Returns the anchor that GitHub gives a heading."""
    lower = heading.lower().replace(" ", "-")
    return "".join(letter for letter in lower if letter.isalnum() or letter in "-_")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")


def _following() -> str:
    """What `complete` fills in."""
    content: dict[str, Any] = {"evaluate": [{}]}
    complete(content, "sweep")
    repaired, evaluated = (
        ", ".join(f"`{name}: {value}`" for name, value in data.items())
        for data in (content["repair"]["data"], content["evaluate"][0])
    )
    return f"""\
- `repair.data`: {repaired}. An entry of `evaluate`: {evaluated}.
- `repair.train`: the connector, and the towers that the space does not fix at 0.
- `objective`: the first metric of what is evaluated; of several tasks `macro`, the mean,
  unless easy-vqa is one of them.
- `baselines`: `dense` alone with `repair.method: none`, else both.
- Prompt, decoding and splits of a data set: by its task and format, see [tasks.md](tasks.md).
- `repair` of the models that come with ressa: the table. `warmup_steps` shrinks with `steps`."""


def _catalog_table() -> str:
    every = {name: MODELS[name].repair_defaults for name in MODELS}
    known = {name: defaults for name, defaults in every.items() if defaults}
    fields = list(dict.fromkeys(field for defaults in known.values() for field in defaults))
    lines = [
        f"| model | {' | '.join(f'`{field}`' for field in fields)} |",
        f"|---|{'---|' * len(fields)}",
    ]
    for name, defaults in known.items():
        cells = (_cell(defaults[field]) if field in defaults else "" for field in fields)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return str(value)


def write(folder: Path) -> None:
    """Writes the schema and the page into a folder."""
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    (folder / SCHEMA_FILE).write_text(f"{text}\n", encoding="utf-8")
    (folder / PAGE_FILE).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
