"""Reads a sweep file into a tree that remembers where each value stands; writes specs as YAML.

The tree is built from the parser's events, one by one: anchors, aliases and tags are refused, and
depth, size and number of values are bounded, so no text can make it grow. Unquoted scalars are
read by YAML 1.2's core schema with their text kept, so 0.1 is exactly a tenth.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.representer import RoundTripRepresenter

from ressa.spec.space import parse_scalar

MAX_BYTES = 1 << 20
_MAX_DEPTH = 16
MAX_VALUES = 10_000
"""Of one text, keys counted too: lists, mappings and what is in them."""

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with which field, wherever that stands."""

    path: Path
    message: str
    fields: frozenset[str] = field(default=frozenset(), compare=False)
    """Of values that cannot be together: the dotted names of the fields that take part."""

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.message}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where it stands, which field it is, and what to do."""

    where: str
    path: str
    message: str

    @property
    def line(self) -> int:
        """The line in the file, 0 if the fault is not in a line."""
        number = self.where.rpartition(":")[2]
        return int(number) if number.isdecimal() and not self.where.startswith("--set") else 0

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.message) if part)


@dataclass(slots=True)
class Node:
    """A value of the file: a scalar, a list of nodes or a mapping of nodes, and its place."""

    where: str
    value: Any

    def plain(self) -> Any:
        """Returns the value without its places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, key: str | int) -> "Node | None":
        """Returns one entry, or None."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and key < len(self.value):
            return self.value[key]  # type: ignore[no-any-return]
        return None

    def locate(self, path: Path) -> tuple[str, str]:
        """Returns where the nearest existing value of a path stands, and how to write the path."""
        node = self
        for depth, key in enumerate(path):
            inner = node.child(key)
            if inner is None:
                # A constant is a single choice to us, but the file has no such list.
                scalar = not isinstance(node.value, dict | list)
                return node.where, path_text(path[:depth] if scalar else path)
            node = inner
        return node.where, path_text(path)


def path_text(path: Path) -> str:
    """Writes a path as the messages do: a.b[0].c"""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


@dataclass(slots=True)
class _Builder:
    """Builds the tree from events and collects what is wrong with it."""

    place: str  # of the whole text: a file name, or "--set key=…"
    by_line: bool
    faults: list[Fault] = field(default_factory=list)
    root: Node | None = None
    documents: int = 0
    values: int = 0
    is_broken: bool = False  # the rest of the text could not be read
    open: list["_Open"] = field(default_factory=list)

    def where(self, event: Event) -> str:
        return f"{self.place}:{event.start_mark.line + 1}" if self.by_line else self.place

    def fault(self, event: Event, message: str) -> None:
        self.faults.append(Fault(self.where(event), "", message))

    def stop(self, event: Event, message: str) -> None:
        self.fault(event, message)
        self.is_broken = True

    def feed(self, events: Iterator[Event]) -> None:
        """Takes events until the text ends or cannot be gone on with."""
        for event in events:
            if isinstance(event, DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    self.stop(event, "a second document begins. Keep one sweep in a file.")
            elif isinstance(event, AliasEvent):
                self.stop(
                    event,
                    f"aliases are not read, got *{event.anchor:.40}. Write it out.",
                )
            elif isinstance(event, NodeEvent):
                self.take(event)
            elif isinstance(event, MappingEndEvent | SequenceEndEvent):
                self.open.pop()
            if self.is_broken:
                return

    def take(self, event: NodeEvent) -> None:
        """Takes one value: a scalar, or the beginning of a list or a mapping."""
        self.values += 1
        if self.values > MAX_VALUES:
            self.stop(event, f"more than {MAX_VALUES} values. Split the sweep.")
        elif len(self.open) >= _MAX_DEPTH:
            self.stop(event, f"nested deeper than {_MAX_DEPTH} levels.")
        else:
            self._refuse_extras(event)
            self._open(event)

    def _refuse_extras(self, event: Any) -> None:
        if event.anchor is not None:
            self.fault(event, f"anchors are not read, got &{event.anchor:.40}. Leave it out.")
        tag = event.ctag or event.tag
        if tag and str(tag) != "!":
            self.fault(event, f"tags are not read, got {str(tag)[:40]}. Leave it out.")

    def _open(self, event: Event) -> None:
        where = self.where(event)
        top = self.open[-1] if self.open else None
        if top is not None and top.expects_key:
            top.key, top.key_where = "?", where
            if isinstance(event, ScalarEvent):
                top.key = event.value
                return
            self.fault(event, "a key is text, got a list or a mapping.")
            self.open.append(_Open(Node(where, _empty(event)), ()))  # read on, but keep nothing
            return
        if isinstance(event, ScalarEvent):
            # Quoted text is text; the rest is what it looks like.
            self._put(
                Node(
                    where,
                    parse_scalar(event.value) if event.style is None else event.value,
                )
            )
            return
        node = Node(where, _empty(event))
        self.open.append(_Open(node, self._put(node)))

    def _put(self, node: Node) -> Path:
        """Hangs a node under the innermost open collection; returns its path."""
        if not self.open:
            self.root = node
            return ()
        top = self.open[-1]
        parent = top.node.value
        if isinstance(parent, list):
            parent.append(node)
            return (*top.path, len(parent) - 1)
        assert top.key is not None, "a key is read before its value"
        key, node.where, top.key = top.key, top.key_where, None
        path = (*top.path, key)
        if key in parent:
            line = parent[key].where.rpartition(":")[2]
            first = f"; it is in line {line} already" if self.by_line else ""
            self.faults.append(Fault(node.where, path_text(path), f"given twice{first}. Keep one."))
        else:
            parent[key] = node
        return path


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come yet; in a mapping, the key that waits for its value."""

    node: Node
    path: Path
    key: str | None = None
    key_where: str = ""

    @property
    def expects_key(self) -> bool:
        return isinstance(self.node.value, dict) and self.key is None


def _empty(event: Event) -> Any:
    return [] if isinstance(event, SequenceStartEvent) else {}


def parse(text: str, place: str, *, by_line: bool = True) -> tuple[Node | None, list[Fault]]:
    """Reads YAML text into a tree, and says everything that is wrong with its form.

    The tree is None if the text is empty or cannot be read to its end.

    Args:
        text: the YAML text.
        place: what a fault's place begins with, such as the file's name.
        by_line: whether places end in a line number.
    """
    builder = _Builder(place, by_line)
    # A directive such as `%YAML 1.1` would change what a scalar means.
    directive = re.search(r"^%", text, re.MULTILINE)
    if directive:
        line = text.count("\n", 0, directive.start()) + 1
        return None, [Fault(f"{place}:{line}", "", "directives (%…) are not read. Leave it out.")]
    try:
        builder.feed(YAML(typ="safe", pure=True).parse(io.StringIO(text)))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        where = f"{place}:{line}" if by_line else place
        builder.is_broken = True
        reason = " ".join(filter(None, (error.context, error.problem)))
        if "'\\t'" in reason:
            reason = "a tab stands where YAML wants spaces"
        builder.faults.append(Fault(where, "", f"not YAML: {reason}."))
    # On broken text the parser also fails in ways of its own; all of them mean the same.
    except (
        YAMLError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        OverflowError,
    ) as error:
        builder.is_broken = True
        builder.faults.append(Fault(place, "", f"not YAML: {error!s:.100}"))
    return (None if builder.is_broken else builder.root), builder.faults


def count_values(content: Any) -> int:
    """Returns how many values `parse` meets in what `write` makes of nested values."""
    if isinstance(content, dict):
        return 1 + sum(1 + count_values(value) for value in content.values())
    if isinstance(content, list | tuple):
        return 1 + sum(map(count_values, content))
    return 1


class _Writer(RoundTripRepresenter):
    """Writes plain values so that `parse` reads them back unchanged."""


_PLAIN_TEXT = re.compile(r"(?!(?i:true|false|null)$)[A-Za-z/][A-Za-z0-9_./-]*")


def _write_text(writer: _Writer, value: str) -> Any:
    style = None if _PLAIN_TEXT.fullmatch(value) else '"'
    return writer.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _write_number(writer: _Writer, value: float | Decimal) -> Any:
    text = str(value)
    kind = "int" if text.lstrip("-").isdecimal() else "float"
    return writer.represent_scalar(f"tag:yaml.org,2002:{kind}", text)


def _write_list(writer: _Writer, value: list[Any]) -> Any:
    is_flat = not any(isinstance(item, dict | list) for item in value)
    return writer.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=is_flat)


_Writer.add_representer(str, _write_text)
_Writer.add_representer(float, _write_number)
_Writer.add_representer(Decimal, _write_number)
_Writer.add_representer(list, _write_list)


def write(content: Any) -> str:
    """Writes nested dicts, lists and scalars as YAML text."""
    yaml = YAML(pure=True)
    yaml.Representer = _Writer
    yaml.width = 1000
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()
