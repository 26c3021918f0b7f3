"""A point of the space comes to the values of one trial."""

from decimal import Decimal
from fractions import Fraction

import pytest

from ressa.errors import InfeasibleAllocation, SpecError
from ressa.sparsity import Target, round_half_up, tower_zeros
from ressa.spec import (
    Ecoflap,
    Owl,
    apply_point,
    baseline,
    grid_points,
    spec_from_mapping,
    spec_from_yaml,
)

SWEEP = """\
ressa: 1
model: pocket-blip2
prune: {language: {method: magnitude, group: matrix}}
space:
  vision_sparsity: {choices: [0, 0.5, "2:4"]}
  prune.method: {choices: [random, wanda]}
  repair.learning_rate: {choices: [1e-3, 5e-3]}
budget: [0.5, 0.6]
resources: {workers: 2}
"""


def point(**changes: str) -> dict[str, str]:
    values = {"budget": "0.5", "vision_sparsity": "0.5", "prune.method": "wanda"}
    return values | {"repair.learning_rate": "0.005"} | changes


def test_a_point_sets_its_fields_and_a_tower_of_its_own_keeps_them(load, inventory):
    spec = load(SWEEP).spec
    found = apply_point(spec, inventory, point(**{"prune.method": "random"}))
    assert (found.vision.method, found.vision.group) == ("random", "row")
    assert (found.language.method, found.language.group) == ("magnitude", "matrix")
    assert found.repair is not None
    assert (found.repair.learning_rate, found.repair.micro_batch) == (0.005, 64)
    assert found.calibration == spec.prune.calibration


def test_options_are_those_that_the_method_of_the_tower_reads(load, inventory):
    text = SWEEP.replace("[random, wanda]", "[wanda, sparsegpt, dsnot]")
    text = text.replace("prune: {", "prune: {from: sparsegpt, dampening: 0.05, cycles: 7, ")
    spec = load(text).spec

    def options(method: str) -> tuple[str | None, float | None, int | None]:
        vision = apply_point(spec, inventory, point(**{"prune.method": method})).vision
        return vision.initial, vision.dampening, vision.cycles

    assert options("wanda") == (None, None, None)
    assert options("sparsegpt") == (None, 0.05, None)
    assert options("dsnot") == ("sparsegpt", 0.05, 7)


def test_what_dsnot_refines_can_be_swept_and_set_for_a_tower(load, inventory):
    text = SWEEP.replace(
        "prune.method: {choices: [random, wanda]}", "prune.from: {choices: [wanda, magnitude]}"
    )
    text = text.replace("{method: magnitude, group: matrix}", "{method: dsnot, from: random}")
    spec = load(text.replace("prune: {", "prune: {method: dsnot, ")).spec
    values = {"budget": "0.5", "vision_sparsity": "0.5", "repair.learning_rate": "0.005"}
    found = apply_point(spec, inventory, values | {"prune.from": "magnitude"})
    assert (found.vision.initial, found.language.initial) == ("magnitude", "random")
    assert spec_from_yaml(spec.to_yaml()) == spec
    assert "from: random" in spec.to_yaml()


@pytest.mark.parametrize("budget", ["0.5", "0.6"])
@pytest.mark.parametrize("vision", ["0.5", "2:4", "1/3", "0.123"])
def test_a_point_meets_its_budget_to_the_weight(load, inventory, budget, vision):
    found = apply_point(load(SWEEP).spec, inventory, point(budget=budget, vision_sparsity=vision))
    zeros = sum(
        tower_zeros(inventory.tower(tower), target.target)
        for tower, target in (("vision", found.vision), ("language", found.language))
    )
    assert zeros == round_half_up(Fraction(budget) * inventory.prunable())
    assert found.vision.target == Target.parse(vision) == found.allocation.vision


def test_a_point_that_cannot_meet_its_budget_is_infeasible(load, inventory):
    spec = load(SWEEP).spec
    with pytest.raises(InfeasibleAllocation, match="language sparsity is a fraction"):
        apply_point(spec, inventory, point(budget="0.6", vision_sparsity="0"))


def test_values_may_be_text_or_what_the_text_stands_for(load, inventory):
    spec = load(SWEEP).spec
    values = {"budget": Decimal("0.5"), "vision_sparsity": 0.5, "repair.learning_rate": 5e-3}
    assert apply_point(spec, inventory, point() | values) == apply_point(spec, inventory, point())


def test_what_is_no_point_of_the_space_is_refused(load, inventory):
    spec = load(SWEEP).spec
    with pytest.raises(SpecError, match=r"Did you mean 'prune.method'\?"):
        apply_point(spec, inventory, point(**{"prune.metod": "wanda"}))
    with pytest.raises(SpecError, match="gives no value for budget"):
        apply_point(spec, inventory, {k: v for k, v in point().items() if k != "budget"})
    with pytest.raises(SpecError, match="does not suit its field"):
        apply_point(spec, inventory, point(**{"repair.learning_rate": "fast"}))


def test_a_grid_lists_feasible_points_in_fixed_order_and_says_why_it_skips(load, inventory):
    spec = load(SWEEP).spec
    points, skipped = grid_points(spec, inventory)
    assert len(points) + len(skipped) == 2 * 3 * 2 * 2
    assert spec.search.trials == len(points) == 20
    assert points[:2] == [
        point(vision_sparsity="0", **{"prune.method": "random", "repair.learning_rate": "0.001"}),
        point(vision_sparsity="0", **{"prune.method": "random", "repair.learning_rate": "0.005"}),
    ]
    assert [entry["budget"] for entry, _ in skipped] == ["0.6"] * 4
    assert all("with vision 0 asks for more zeros" in reason for _, reason in skipped)
    assert list(points[0]) == [axis.name for axis in spec.dimensions]


def test_a_continuous_space_has_no_grid(load, inventory, least):
    spec = load(least.replace("vision_sparsity: 0.5", "vision_sparsity: {low: 0, high: 1}")).spec
    with pytest.raises(SpecError, match="vision_sparsity is continuous"):
        grid_points(spec, inventory)


def test_vision_is_solved_where_language_is_given(load, inventory):
    text = "ressa: 1\nmodel: pocket-blip2\nspace: {language_sparsity: 2:4}\nbudget: 0.6\n"
    spec = load(text).spec
    found = apply_point(spec, inventory, {"budget": "0.6", "language_sparsity": "2:4"})
    assert str(found.language.target) == "2:4"
    zeros = tower_zeros(inventory.tower("vision"), found.vision.target)
    assert zeros + 98_304 == round_half_up(Fraction("0.6") * 344_064)


def test_baselines_lose_nothing_and_repair_by_the_same_recipe(load):
    spec = load(SWEEP).spec
    dense, repaired = baseline(spec, "dense"), baseline(spec, "dense_repaired")
    assert dense.vision.target.sparsity == 0
    assert dense.language.target.sparsity == 0
    assert dense.repair is None
    assert repaired.repair == spec.repair.model_copy(update={"micro_batch": 64})


ONE = "ressa: 1\nmodel: pocket-blip2\nspace: {sparsity: {choices: [0, 0.5, 2:4, 1]}%s}\n%s\n"


def test_one_sparsity_is_the_target_of_both_towers(load, inventory):
    spec = load(ONE % ("", "")).spec
    for text in ("0.5", "2:4"):
        found = apply_point(spec, inventory, {"sparsity": text})
        assert found.vision.target == found.language.target == Target.parse(text)
        assert not found.vision.is_shared
    assert grid_points(spec, inventory)[0] == [{"sparsity": s} for s in ("0", "0.5", "2:4", "1")]


def test_both_towers_may_lose_one_share_together(load, inventory):
    spec = load((ONE % ("", "prune: {group: all}")).replace(", 2:4", "")).spec
    found = {s: apply_point(spec, inventory, {"sparsity": s}).vision for s in ("0", "0.5", "1")}
    assert {tower.group for tower in found.values()} == {"all"}
    # Nothing and everything are the same shared or not.
    assert [tower.is_shared for tower in found.values()] == [False, True, False]
    assert not baseline(spec, "dense").vision.is_shared


def test_points_whose_values_exclude_each_other_are_skipped_with_the_reason(load, inventory):
    axes = ", prune.group: {choices: [row, all]}, prune.layers: {choices: [uniform, owl]}"
    spec = load(ONE % (axes, "")).spec
    points, skipped = grid_points(spec, inventory)
    assert len(points) + len(skipped) == 4 * 2 * 2 == spec.search.trials + len(skipped)
    assert len(skipped) == 1 + 4
    for entry, reason in skipped:
        assert entry["prune.group"] == "all"
        expected = "one threshold" if entry["prune.layers"] == "owl" else "pattern 2:4 fixes"
        assert expected in reason


def test_activations_can_be_swept(load, inventory):
    axes = ", prune.calibration.activations: {choices: [dense, tower, sequential]}"
    spec = load(ONE % (axes, "")).spec
    values = {"sparsity": "0.5", "prune.calibration.activations": "sequential"}
    assert apply_point(spec, inventory, values).calibration.activations == "sequential"


def test_what_is_trained_can_be_swept(load, inventory):
    axes = ', repair.train: {choices: [language, "vision, connector"]}'
    spec = load(ONE % (axes, "")).spec
    for text, parts in (
        ("language", ("language",)),
        ("vision, connector", ("vision", "connector")),
    ):
        repair = apply_point(spec, inventory, {"sparsity": "0.5", "repair.train": text}).repair
        assert repair is not None and repair.train == parts


def test_options_of_the_layers_are_those_that_are_read(load, inventory):
    options = "{counting: reference, layers: owl, owl: {threshold: 7}, language: {layers: ecoflap}}"
    spec = load(ONE % ("", f"prune: {options}")).spec
    half = apply_point(spec, inventory, {"sparsity": "0.5"})
    assert (half.vision.layers, half.language.layers) == (Owl(threshold=7.0), Ecoflap())
    assert (half.vision.layerwise, half.language.layerwise) == ("owl", "ecoflap")
    assert half.vision.counting == "reference"
    hash(half.vision)
    for text in ("0", "2:4", "1"):
        found = apply_point(spec, inventory, {"sparsity": text}).vision
        assert (found.layers, found.layerwise, found.counting) == (None, "uniform", "exact")
    assert baseline(spec, "dense").language.layers is None
    assert spec_from_yaml(spec.to_yaml()) == spec


def test_a_table_becomes_the_layers_that_it_names_in_each_tower(load, inventory):
    table = '{layers: {"vision.?.*": 0.45, language.3.weight: 0.6}}'
    spec = load((ONE % ("", f"prune: {table}")).replace("0, ", "").replace(", 1", "")).spec
    found = apply_point(spec, inventory, {"sparsity": "0.5"})
    names = [f"vision.{index}.weight" for index in range(10)]
    assert found.vision.layers == tuple((name, Fraction(9, 20)) for name in names)
    assert found.language.layers == (("language.3.weight", Fraction(3, 5)),)
    assert found.vision.layerwise == "table"
    assert apply_point(spec, inventory, {"sparsity": "2:4"}).vision.layers is None
    assert spec_from_yaml(spec.to_yaml()) == spec
    # Another way to write the same trial.
    same = load(
        (ONE % ("", f"prune: {table}".replace("vision.?.*", "vision.[0-9].weight"))).replace(
            "0, ", ""
        )
    ).spec
    assert apply_point(same, inventory, {"sparsity": "0.5"}) == found


def test_a_table_that_a_point_cannot_meet_makes_it_infeasible(load, inventory):
    spec = load(ONE % ("", 'prune: {layers: {"vision.?.*": 0.9}}')).spec
    points, skipped = grid_points(spec, inventory)
    assert [entry["sparsity"] for entry in points] == ["2:4"]
    assert [entry["sparsity"] for entry, _ in skipped] == ["0", "0.5", "1"]
    assert all("vision: the table's layers come to" in reason for _, reason in skipped)


def test_floors_and_a_budget_are_warned_of(load):
    text = SWEEP.replace("prune: {", "prune: {counting: reference, ")
    assert any("misses its budget" in warning for warning in load(text).warnings)
    assert not any("misses its budget" in warning for warning in load(SWEEP).warnings)


LISTED = {
    "ressa": 1,
    "model": "pocket-blip2",
    "points": [
        {"vision_sparsity": 0.5, "language_sparsity": "2:4", "repair.steps": 20},
        {"vision_sparsity": 0, "language_sparsity": 0.875, "repair.steps": 40},
    ],
    "replicates": 2,
}


def test_listed_points_are_run_in_their_order_and_no_other():
    loaded = spec_from_mapping(LISTED)
    assert loaded.spec.search.trials == 4
    points, skipped = grid_points(loaded.spec, loaded.inventory)
    assert [(p["vision_sparsity"], p["replicate"]) for p in points] == [
        ("0.5", "0"), ("0.5", "1"), ("0", "0"), ("0", "1"),
    ]  # fmt: skip
    assert not skipped
    other = {"vision_sparsity": "0.5", "language_sparsity": "0.875", "repair.steps": "20"}
    with pytest.raises(InfeasibleAllocation, match="none of the points that are listed"):
        apply_point(loaded.spec, loaded.inventory, {**other, "replicate": "0"})


def test_listed_points_are_counted_as_listed_not_by_the_values_of_their_fields():
    warnings = spec_from_mapping(LISTED | {"search": {"trials": 5}}).warnings
    assert "5 trials asked for, the space has 4 points" in warnings[-1]


def test_many_listed_points_of_which_none_can_be_are_refused():
    shares = [Decimal(share) / 1000 for share in range(101)]
    points = [{"vision_sparsity": share, "language_sparsity": share} for share in shares]
    with pytest.raises(SpecError, match="constraints: no point of the space can be"):
        spec_from_mapping(LISTED | {"points": points, "constraints": ["sparsity >= 0.5"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": [{"vision_sparsity": 0.5}, {"language_sparsity": 0.5}]}, "this one lacks"),
        ({"points": [{"vision_sparsity": 0.5, "language_sparsity": 0.5}] * 2}, "listed already"),
        ({"points": [{"vision_sparsity": [0.5], "language_sparsity": 0.5}]}, "a number, a text"),
        ({"points": {"vision_sparsity": 0.5}}, "a list of mappings"),
        ({"budget": 0.5}, "Leave the budget out"),
        ({"search": {"sampler": "tpe"}}, "visited in order, by grid"),
        ({"space": {"vision_sparsity": 0.4, "language_sparsity": 0.5}}, "the space lacks"),
    ],
)
def test_what_is_wrong_with_a_list_of_points_is_said(change, message):
    with pytest.raises(SpecError, match=message):
        spec_from_mapping(LISTED | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confirm": [{"split": "validation"}]}, "on split 'test' alone"),
        ({"confirm": [{}, {}]}, "scored already"),
        ({"confirms": "other"}, "lists its points"),
        ({"verdict": {"margin": 0}}, "verdict.margin"),
        ({"verdict": {"confidence": 95}}, "verdict.confidence"),
    ],
)
def test_what_is_wrong_with_a_confirmation_is_said(change, message):
    content = LISTED | {"points": None} | change
    del content["points"]
    content["space"] = {"vision_sparsity": 0.4, "language_sparsity": 0.5}
    with pytest.raises(SpecError, match=message):
        spec_from_mapping(content)


def test_a_margin_is_declared_and_may_be_declared_anew():
    one = spec_from_mapping(LISTED).spec
    other = spec_from_mapping(LISTED | {"verdict": {"margin": 0.5}}).spec
    assert one.verdict.margin == 1
    assert one.identity == other.identity


def test_fields_of_repair_that_are_swept_together_are_judged_at_each_point(load, inventory):
    text = (
        "ressa: 1\nmodel: pocket-blip2\n"
        "space: {vision_sparsity: 0.5, language_sparsity: 0.5, "
        "repair.steps: {choices: [20, 100]}, repair.warmup_steps: {choices: [5, 50]}}\n"
        "repair: {steps: 100, warmup_steps: 5}\n"
    )
    points, skipped = grid_points(load(text).spec, inventory)
    asked = [(point["repair.steps"], point["repair.warmup_steps"]) for point in points]
    assert asked == [("20", "5"), ("100", "5"), ("100", "50")]
    ((point, reason),) = skipped
    assert (point["repair.steps"], point["repair.warmup_steps"]) == ("20", "50")
    assert reason.startswith("repair.warmup_steps: the warm-up is part of steps (20), got 50")


def test_which_points_there_are_does_not_follow_from_workers_which_may_grow(load, inventory):
    text = (
        "ressa: 1\nmodel: pocket-blip2\n"
        "space: {vision_sparsity: 0.5, language_sparsity: 0.5, "
        "repair.batch_size: {choices: [64, 96]}, repair.micro_batch: {choices: [16, 48]}}\n"
        "resources: {workers: %d}\n"
    )
    one, four = (grid_points(load(text % workers).spec, inventory) for workers in (1, 4))
    assert one == four
    assert len(one[0]) == 4


def test_values_that_are_right_together_alone_can_be_swept(load, inventory):
    text = (
        "ressa: 1\nmodel: pocket-blip2\n"
        "space: {vision_sparsity: 0.5, language_sparsity: 0.5, "
        "repair.objective: {choices: [image_text, text]}, "
        'repair.train: {choices: ["vision,connector,language", language]}}\n'
    )
    points, skipped = grid_points(load(text).spec, inventory)
    asked = {(point["repair.objective"], point["repair.train"]) for point in points}
    assert ("text", "language") in asked
    assert ("text", "vision,connector,language") not in asked
    assert len(skipped) == 1
