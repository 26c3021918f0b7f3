"""YAML 1.2, exact numbers, places; and nothing that can grow or run."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ressa.spec.yaml import MAX_VALUES, count_values, parse, write


def plain(text: str) -> object:
    tree, faults = parse(text, "f")
    assert tree is not None, faults
    assert faults == []
    return tree.plain()


def faults(text: str) -> list[str]:
    return [str(fault) for fault in parse(text, "f")[1]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),
        ("5e-3", Decimal("0.005")),
        ("0.10", Decimal("0.10")),
        ("010", 10),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("off", "off"),
        ("None", "None"),
        ("TRUE", True),
        ("~", None),
        ("'0.5'", "0.5"),
        ("2026-01-01", "2026-01-01"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_does(text, value):
    found = plain(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


def test_every_value_knows_its_line():
    tree, _ = parse("a: 1\nb:\n  c:\n  - x\n  - {d: 2}\n", "f")
    assert tree.locate(("b", "c", 1, "d")) == ("f:5", "b.c[1].d")
    assert tree.locate(("b", "missing")) == ("f:2", "b.missing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x", "f:2: aliases are not read, got *x. Write it out."),
        ("a: &x 1", "f:1: anchors are not read, got &x. Leave it out."),
        ("a: !!python/object/apply:os.system [ls]", "f:1: tags are not read"),
        ("!x {a: 1}", "f:1: tags are not read, got !x"),
        ("a: 1\n---\nb: 2", "f:2: a second document begins. Keep one sweep in a file."),
        ("%YAML 1.1\n---\na: 1", "f:1: directives (%…) are not read. Leave it out."),
        ("a: 1\nb: {c: 1,\n  c: 2}", "f:3: b.c: given twice; it is in line 2 already. Keep one."),
        ("? [a, b]\n: 1", "f:1: a key is text, got a list or a mapping."),
        ("a: [1", "f:1: not YAML: while parsing a flow sequence"),
        ("a: 1\n\tb: 2", "f:2: not YAML: "),
        ("a: \x00", "f: not YAML: "),
        ("[" * 10_000, "f:1: nested deeper than 16 levels."),
        ("{a: " * 10_000, "f:1: nested deeper than 16 levels."),
        ("[" + "1," * 20_000 + "]", "f:1: more than 10000 values. Split the sweep."),
    ],
)
def test_what_a_sweep_file_may_not_hold_is_refused(text, message):
    assert any(fault.startswith(message) for fault in faults(text)), faults(text)


def test_a_billion_laughs_are_not_heard():
    laughs = "a0: &a0 [ha]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    assert "aliases are not read" in faults(laughs)[-1]


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-99, max_value=99)
    | st.text("aé漢:#-'\"\\ \n1.5e[{&*!%~?|>,")
)
contents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.c", min_size=1), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abc", min_size=1), contents))
def test_what_is_written_reads_back_unchanged(content):
    tree, found = parse(write(content), "f")
    assert found == []
    assert tree is not None
    assert tree.plain() == content


def test_values_are_counted_before_they_are_written_as_they_are_read():
    content = {"a": [{"b": None, "c": [1, "x"]} for _ in range(1000)], "d": {}}
    content["e"] = [0] * (MAX_VALUES - count_values(content) - 2)
    assert count_values(content) == MAX_VALUES
    assert parse(write(content), "f")[1] == []
    content["e"].append(0)
    assert "more than 10000 values" in faults(write(content))[0]
