"""From the shortest file to a resolved spec; what `--set` changes; what the store keeps."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from ressa.errors import SpecError
from ressa.spec import DataRef, Rank, load_spec, spec_from_mapping, spec_from_yaml
from ressa.spec.yaml import MAX_VALUES, Problem, count_values


def test_three_keys_run_and_the_rest_follows(load, least):
    loaded = load(least)
    spec = loaded.spec
    assert loaded.warnings == ()
    assert (spec.name, spec.model.id, spec.store) == ("sweep", "pocket-blip2", "results")
    assert (spec.prune.method, spec.prune.group) == ("wanda", "row")
    assert spec.prune.calibration.samples == 128
    assert spec.repair.data == DataRef(task="easy-vqa", split="train", samples=6000, seed=0)
    assert spec.evaluate == (DataRef(task="easy-vqa", split="validation", samples=2000, seed=0),)
    assert spec.objective.maximize == "easy-vqa.balanced_accuracy"
    assert (spec.objective.task, spec.objective.metric) == ("easy-vqa", "balanced_accuracy")
    assert spec.baselines == ("dense", "dense_repaired")
    assert (spec.search.sampler, spec.search.trials, spec.search.parallel) == ("grid", 1, 1)


def test_repair_defaults_come_from_the_catalog_else_from_the_paper(load, least, tmp_path):
    pocket = load(least).spec.repair
    assert pocket.rank == Rank(vision=8, language=8, connector=2)
    assert (pocket.learning_rate, pocket.steps, pocket.batch_size) == (0.005, 100, 128)
    assert (pocket.schedule, pocket.warmup_steps, pocket.clip) == ("cosine", 10, 1.0)
    paper = load(least, "model=Salesforce/blip2-flan-t5-xl").spec.repair
    assert paper.rank == Rank(vision=4, language=8, connector=2)
    assert (paper.learning_rate, paper.steps, paper.batch_size) == (1e-4, 390, 64)


def test_a_given_value_stands_and_its_neighbours_keep_their_defaults(load, least):
    repair = load(least + "repair: {rank: {vision: 3}, data: {seed: 7}, steps: 50}").spec.repair
    assert repair.rank == Rank(vision=3, language=8, connector=2)
    assert repair.data == DataRef(task="easy-vqa", split="train", samples=6000, seed=7)
    assert (repair.steps, repair.warmup_steps) == (50, 5)


@pytest.mark.parametrize("zero", ["0", "{choices: [0]}", "{low: 0, high: 0}", "0.0"])
def test_a_tower_that_loses_nothing_is_not_trained_however_that_is_written(load, zero):
    space = f"{{vision_sparsity: {zero}, language_sparsity: 0.5}}"
    text = f"ressa: 1\nmodel: pocket-blip2\nspace: {space}\n"
    assert load(text).spec.repair.train == ("connector", "language")


def test_listed_points_may_spell_one_number_in_two_ways(load):
    text = (
        "ressa: 1\nmodel: pocket-blip2\npoints:\n"
        "  - {vision_sparsity: 0.50, language_sparsity: 0.4}\n"
        "  - {vision_sparsity: 0.5, language_sparsity: 0.6}\n"
    )
    assert len(load(text).spec.points) == 2


def test_an_end_of_the_shared_sparsity_may_be_set(load):
    text = "ressa: 1\nmodel: pocket-blip2\nspace: {sparsity: {low: 0.1, high: 0.6, step: 0.1}}\n"
    spec = load(text, "space.sparsity.low=0.2").spec
    assert str(spec.space["sparsity"].low) == "0.2"


def test_the_sampler_follows_from_the_space(load, least):
    continuous = least.replace("vision_sparsity: 0.5", "vision_sparsity: {low: 0, high: 0.8}")
    assert (load(continuous).spec.search.sampler, load(continuous).spec.search.trials) == (
        "tpe",
        20,
    )
    stepped = continuous.replace("0.8}", "0.8, step: 0.1}")
    assert (load(stepped).spec.search.sampler, load(stepped).spec.search.trials) == ("grid", 9)
    assert load(least, "search.parallel=3").spec.search.window == 6


def test_a_grid_runs_its_feasible_points(load):
    spec = load(
        "ressa: 1\nmodel: pocket-blip2\nbudget: [0.2, 0.6]\n"
        "space: {vision_sparsity: {low: 0, high: 0.8, step: 0.2}}"
    ).spec
    # At 0.2 the tower may not lose more than the whole may: 0, 0.2 and 0.4. At 0.6 it must lose
    # at least 0.07, as the language tower has but 57 % of the weights: 0.2, 0.4, 0.6 and 0.8.
    assert spec.search.trials == 7


def test_a_tower_that_stays_dense_is_not_trained(load, least):
    spec = load(least.replace("vision_sparsity: 0.5", "vision_sparsity: 0")).spec
    assert spec.repair.train == ("connector", "language")


def test_without_repair_no_baseline_is_repaired(load, least):
    assert load(least + "repair: {method: none}").spec.baselines == ("dense",)


def test_the_name_comes_from_the_file(tmp_path, least):
    path = tmp_path / "Équal Budget_2.yaml"
    path.write_text(least, encoding="utf-8")
    assert load_spec(path).spec.name == "qual-budget_2"


def test_set_changes_typed_values_at_any_depth(load, least):
    spec = load(
        least,
        "prune.method=magnitude",
        "repair.rank.vision=3",
        "repair.learning_rate=5e-4",
        "space.vision_sparsity=2:4",
        "space.repair.steps={low: 10, high: 20, step: 10}",
        "space.repair.steps.high=30",
        "evaluate=[{samples: 40}]",
        "evaluate.0.seed=2",
        "resources.workers=2",
    ).spec
    assert spec.prune.method == "magnitude"
    assert spec.repair.rank.vision == 3
    assert spec.repair.learning_rate == 5e-4
    assert spec.evaluate == (DataRef(split="validation", samples=40, seed=2),)
    assert [axis.values for axis in spec.dimensions] == [("2:4",), ("0.5",), ("10", "20", "30")]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("prune.metod=wanda", "--set prune.metod=wanda: prune.metod: unknown key 'metod'. Did you"),
        ("prune.method=wnada", "--set prune.method=wnada: prune.method: unknown prune method"),
        ("repair.steps=many", "--set repair.steps=many: repair.steps: an integer, got 'many'."),
        ("steps", "--set steps: write it as key=value, such as prune.method=magnitude."),
        ("=1", "--set =1: write it as key=value"),
        ("model.revision=x", "--set model.revision=x: model.revision: model is not a mapping"),
        ("name=[1", "--set name=[1: not YAML"),
        ("name=", "--set name=: name: text, got nothing."),
    ],
)
def test_a_wrong_set_is_reported_as_such(faults, least, change, fault):
    assert faults(least, change)[0].startswith(fault)


def test_a_resolved_spec_reads_back_equal(load, least):
    for extra in (
        "",
        "budget: [0.25, 0.5]\n",
        "prune: {vision: {method: magnitude}}\nrepair: {learning_rate: 1.5e-05}\n",
        "search: {sampler: random, seed: 3}\n",
        "resources: {gpus_per_worker: 0.5}\n",
    ):
        text = least + extra
        if "budget" in extra:
            text = text.replace(", language_sparsity: 0.5", "").replace("0.5}", "[0.1, 2:4]}")
            text = text.replace("[0.1, 2:4]", "{choices: [0.1, 2:4, 1/3]}")
        spec = load(text).spec
        again = spec_from_yaml(spec.to_yaml())
        assert again == spec
        assert again.identity == spec.identity
        assert again.dimensions == spec.dimensions


def test_what_is_valid_can_be_stored_and_read_back(load, faults):
    def listed(count):
        lines = [f"- {{vision_sparsity: 0.{n:04}, language_sparsity: 0.5}}" for n in range(count)]
        return "\n".join(["ressa: 1", "model: pocket-blip2", "points:", *lines, ""])

    spec = load(listed(1000)).spec
    assert spec_from_yaml(spec.to_yaml()) == spec
    assert count_values(spec.model_dump()) < MAX_VALUES
    (fault,) = faults(listed(1950))  # few enough as they stand there
    assert "at most 10,000 values" in fault
    assert "1,950 points are listed. Split the sweep." in fault


def test_a_spec_from_python_values_is_that_of_the_file(load, least):
    content = {
        "ressa": 1,
        "model": "pocket-blip2",
        "space": {"vision_sparsity": 0.5, "language_sparsity": 0.5},
    }
    assert spec_from_mapping(content).spec == load(least).spec
    with pytest.raises(SpecError, match=r"spec: space.vision_sparsity: .*Did you mean 0.5\?"):
        spec_from_mapping(content | {"space": {"vision_sparsity": 50, "language_sparsity": 0}})


def test_the_identity_changes_with_what_can_change_results_alone(load, least):
    identity = load(least).spec.identity
    for same in (
        "search.trials=9",
        "search.parallel=2",
        "store=elsewhere",
        "name=other",
        "resources.cpus_per_worker=2",
        "resources.workers=2",  # may grow: rows record it, and scores agree within rounding
        "retry.attempts=1",
        "limits={failed_trials: 2, trial_hours: 0.5}",
        "space.vision_sparsity=0.50",
    ):
        assert load(least, same).spec.identity == identity, same
    for other in (
        "repair.steps=99",
        "prune.method=random",
        "space.vision_sparsity=0.51",
        "search.seed=1",
        "evaluate=[{samples: 99}]",
    ):
        assert load(least, other).spec.identity != identity, other


def test_a_trivial_answer_is_named(load, least):
    free = least.replace("vision_sparsity: 0.5", "vision_sparsity: {low: 0, high: 0.8, step: 0.1}")
    assert "trivial answer" in load(free).warnings[0]
    assert "(0, 0)" in load(free).warnings[0]
    budget = free.replace(", language_sparsity: 0.5", "") + "budget: 0.5\n"
    assert load(budget).warnings == ()


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_a_search_that_would_starve_the_sparser_lines_is_warned_of(load, sampler):
    text = (
        "ressa: 1\nmodel: pocket-blip2\n"
        "space: {vision_sparsity: {low: 0.3, high: 0.7, step: 0.1}}\n"
        f"budget: [0.5, 0.6]\nsearch: {{sampler: {sampler}, trials: 5}}\n"
    )
    (warning,) = load(text).warnings
    assert f"{sampler} looks for the best score of all" in warning
    assert "map looks for the best of each line" in warning
    assert load(text.replace(sampler, "map")).warnings == ()
    assert load(text.replace("[0.5, 0.6]", "0.5")).warnings == ()
    assert load(text.replace("trials: 5", "trials: 10")).warnings == (), "it runs them all"


def test_more_trials_than_points_and_a_budget_out_of_reach_are_warned_of(load):
    text = (
        "ressa: 1\nmodel: pocket-blip2\nspace: {vision_sparsity: 0.3}\n"
        "budget: [0.5, 0.95]\nsearch: {trials: 5}\n"
    )
    warnings = load(text).warnings
    assert "5 trials asked for, the space has 2 points" in warnings[0]
    assert warnings[1].startswith("budget 0.95: no point of the space meets it: language sparsity")


def test_a_model_of_ones_own_is_checked_after_its_layers_are_known(load, least, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    loaded = load(least, "model=./mine")
    assert loaded.inventory is None
    loaded.refuse([])
    with pytest.raises(SpecError, match=r"^sweep.yaml:3: space.vision_sparsity: too wide$"):
        loaded.refuse([Problem(("space", "vision_sparsity", "choices", 0), "too wide")])


def test_a_sweep_file_is_read_without_what_takes_long_to_import(tmp_path, least):
    path = tmp_path / "sweep.yaml"
    path.write_text(least.replace("pocket-blip2", "some/model"), encoding="utf-8")
    code = (
        "import sys; from ressa.spec import load_spec; load_spec(sys.argv[1]); "
        "print({'numpy', 'pandas', 'pyarrow', 'duckdb', 'torch', 'ray', 'optuna'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "sweep.yaml: the file is empty. A sweep has at least the keys"),
        (b"# nothing but words\n", "sweep.yaml: the file is empty."),
        (b"- a\n- b\n", "sweep.yaml: not a mapping of keys to values."),
        (b"just text", "sweep.yaml: not a mapping of keys to values."),
        (b"ressa: 1\nname: \xff\xfe\n", "sweep.yaml: line 2 is not UTF-8 text."),
        (b"#" * ((1 << 20) + 1), "sweep.yaml: larger than 1 MiB: no sweep file."),
        (b"PAR1\x00\x01\x02", "sweep.yaml: not YAML: "),
    ],
)
def test_what_is_no_sweep_file_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_bytes(content)
    with pytest.raises(SpecError) as error:
        load_spec("sweep.yaml")
    assert error.value.faults[0].startswith(message)


def test_a_missing_file_comes_with_the_nearest_name(load, least, tmp_path):
    load(least)
    with pytest.raises(SpecError, match=r"swep.yaml: no such file. Did you mean 'sweep.yaml'\?"):
        load_spec("swep.yaml")
    with pytest.raises(SpecError, match="is a folder"):
        load_spec(tmp_path)


def test_a_file_with_a_byte_order_mark_is_read(load, least):
    assert load("\ufeff" + least).spec.search.trials == 1


def test_decimals_stay_exact(load, least):
    spec = load(least.replace("0.5,", "0.123456789012345678,")).spec
    assert spec.space["vision_sparsity"].choices == (Decimal("0.123456789012345678"),)


@pytest.mark.parametrize(
    ("top", "question"),
    [
        ("# Which split\n# is best?\n#   ressa run x.yaml\n#\n# More.\n", "Which split is best?"),
        ("# yaml-language-server: $schema=x\n# Which?\n\n# not this\n", "Which?"),
        ("\n# not at the top\n", ""),
        ("", ""),
        (f"# {'long ' * 1000}\n", ("long " * 1000)[:1000]),
    ],
)
def test_a_files_question_is_the_first_paragraph_of_the_comment_at_its_top(tmp_path, top, question):
    file = tmp_path / "asks.yaml"
    least = "ressa: 1\nmodel: pocket-blip2\nspace: {vision_sparsity: 0.5, language_sparsity: 0.5}\n"
    file.write_text(top + least)
    spec = load_spec(file).spec
    assert spec.question == question
    assert spec_from_yaml(spec.to_yaml()) == spec
    other = load_spec(file, ["question=Why?"]).spec
    assert other.question == "Why?"
    assert other.identity == spec.identity, "words change no result"
