"""What the tables hold: each column's type, meaning and unit, in one place.

Types are named here and turned into pyarrow's when rows are written, so that the tables can be
looked up without importing pyarrow. Adding a column keeps the version; changing what one means
raises it.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow

SCHEMA_VERSION = 1

PACKAGES = ("ressa", "python", "torch", "ray", "deepspeed", "transformers", "optuna")
"""What a trial's row names the versions of, each in a column `<package>_version`."""

Kind = Literal["text", "integer", "float", "boolean", "time", "texts", "json"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `json` is text that holds a JSON value, `time` is UTC."""

    name: str
    kind: Kind
    meaning: str
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table: `key` names the columns that tell two rows of one attempt apart."""

    name: str
    meaning: str
    key: tuple[str, ...]
    own_columns: tuple[Column, ...]
    of_attempts: bool = True
    """Rows belong to an attempt of a trial, and count once that attempt's `trials` row exists."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The identity columns, then the table's own."""
        return IDENTITY + self.own_columns


IDENTITY = (
    Column("sweep", "text", "name of the sweep"),
    Column("trial", "text", "'dense', 'dense-repaired', 't000', …; null for the sweep as a whole"),
    Column("attempt", "integer", "which try of the trial, from 0"),
    Column("epoch", "integer", "the writing driver's lease; a later driver has a larger one"),
    Column("committed", "time", "when the row was written"),
)

_WHICH_SCORE = (
    Column("task", "text", "name of the task; all for a mean over tasks"),
    Column("split", "text", "split of the task's examples"),
    Column("state", "text", "dense, pruned, repaired (merged) or repaired_unmerged (lora)"),
    Column("image", "text", "real, or blank: the mean-colour image in place of each"),
)


def _both_towers(kind: Kind, suffix: str, meaning: str, unit: str = "") -> tuple[Column, Column]:
    return (
        Column(f"vision_{suffix}", kind, f"vision tower: {meaning}", unit),
        Column(f"language_{suffix}", kind, f"language tower: {meaning}", unit),
    )


_SPARSITY = (
    *_both_towers(
        "text", "target", "what was asked, exact: '0.5', '2:4', '98304/196608'; null with group all"
    ),
    *_both_towers("float", "sparsity", "what was asked, as a number", "fraction"),
    Column("budget", "float", "sparsity asked over all prunable weights, if any", "fraction"),
    *_both_towers("integer", "zeros_requested", "zeros that its target amounts to", "weights"),
    *_both_towers("integer", "zeros", "zeros counted in its prunable weights", "weights"),
    *_both_towers("integer", "prunable", "prunable weights", "weights"),
    Column("sparsity", "float", "zeros counted over all prunable weights", "fraction"),
    *_both_towers(
        "integer",
        "packed_bytes",
        "its prunable weights stored packed: those that stay, and a bit for each place; of N:M the "
        "places in each group, ⌈log2 M⌉ bits a value",
        "bytes",
    ),
    *_both_towers(
        "integer",
        "macs",
        "multiply-accumulates with the prunable weights that stay, in one forward pass over the "
        "first evaluation question, its picture and its answer",
        "operations",
    ),
    Column("whole_zeros", "integer", "zeros counted over all parameters", "weights"),
    Column("whole_parameters", "integer", "parameters of the whole model", "weights"),
    Column("whole_sparsity", "float", "zeros counted over all parameters", "fraction"),
    Column("zeros_after_merge_ok", "boolean", "every pruned weight was exactly 0 after the merge"),
    Column("pruned_nonzero", "integer", "pruned weights not exactly 0 after the merge", "weights"),
    Column("mask_hash", "text", "hash of both towers' keep masks"),
    *_both_towers("text", "method", "pruning method"),
    *_both_towers("text", "group", "where weights compete: row, matrix, tower or all"),
    *_both_towers("text", "counting", "exact, or reference: the floor in each row"),
    *_both_towers("text", "layers", "split over its layers: uniform, owl, ecoflap or table"),
)

_RESULT = (
    Column("metric", "text", "the objective, such as easy-vqa.balanced_accuracy"),
    Column("items", "integer", "questions behind each score", "questions"),
    Column("score", "float", "the objective's value: repaired, or pruned without repair"),
    Column("objectives", "json", "objective → value; of a stopped trial, at its last rung"),
    Column("stopped_step", "integer", "the rung at which early stopping ended it"),
    Column("score_pruned", "float", "the objective before repair"),
    Column("score_repaired", "float", "the objective after repair"),
    Column("score_unmerged", "float", "the objective after repair by lora, before its merge"),
    Column("score_pruned_se", "float", "its standard error, clustered by image"),
    Column("score_repaired_se", "float", "its standard error, clustered by image"),
    Column("blank_pruned", "float", "the objective on blank images, before repair"),
    Column("blank_repaired", "float", "the objective on blank images, after repair"),
    Column("floor_majority", "float", "the objective of the majority answer per question"),
    Column("floor_dense_blank", "float", "the objective of the dense model on blank images"),
    Column("trainable_weights", "integer", "numbers that repair trained", "weights"),
    *(
        Column(f"{part}_trainable_weights", "integer", f"of them in the {where}", "weights")
        for part, where in (
            ("vision", "vision tower"),
            ("connector", "connector"),
            ("language", "language tower"),
        )
    ),
    Column("adapters_hash", "text", "hash of what repair trained, before its merge"),
    Column("merge_gap", "float", "largest |merged − adapter| logit difference on a probe batch"),
)

_STAGES = ("calibration", "prune", "teacher", "repair", "evaluate", "total")

_CIRCUMSTANCES = (
    *(Column(f"{s}_seconds", "float", f"wall time of {s}", "seconds") for s in _STAGES),
    Column("cpu_seconds", "float", "processor time of all workers", "seconds"),
    Column("stages_computed", "texts", "shared stages that it made itself, as stage/key"),
    Column("stages_reused", "texts", "shared stages that it found, as stage/key"),
    Column("workers", "integer", "worker processes of the trial"),
    Column("micro_batch", "integer", "examples per forward pass of a worker", "questions"),
    Column("cpu", "text", "type of the processor of its first worker's machine"),
    Column("gpu", "text", "type of that worker's GPU; null if it had none"),
    Column("host", "text", "name of that machine; null without a result"),
    Column("started", "time", "when the attempt began"),
    Column("finished", "time", "when the attempt ended"),
    Column("failure_class", "text", "oom, numeric, data, node, preempted, timeout or code"),
    Column("failure_stage", "text", "the stage that failed"),
    Column("error", "text", "the failure in a sentence"),
    Column("traceback", "text", "where it happened"),
    Column("point", "json", "the proposed point: field → value"),
    Column("ressa_commit", "text", "git commit of the checkout that ressa ran from, if it did"),
    *(Column(f"{package}_version", "text", f"version of {package}") for package in PACKAGES),
)

SUCCESSFUL = ("succeeded", "reused")
"""States of trials that came to a result."""
ENDED_WELL = (*SUCCESSFUL, "stopped")
"""States of trials that are no failure: early stopping ends some before their result."""

TRIALS = Table(
    name="trials",
    meaning="one row per finished attempt, written after all its other rows",
    key=("trial",),
    own_columns=(
        Column("role", "text", "baseline, search, or confirm: of a sweep that confirms another"),
        Column("number", "integer", "number of the proposal; null for a baseline"),
        Column("key", "text", "hash of all that can change the trial's result"),
        Column("state", "text", "succeeded, stopped, failed, lost, cancelled or reused"),
        Column("reused_trial", "text", "the trial whose result this one repeats"),
        Column("model", "text", "the model: a catalog name, a folder or a hub id"),
        *_SPARSITY,
        *_RESULT,
        *_CIRCUMSTANCES,
    ),
)

SCORES = Table(
    name="scores",
    meaning="every metric of every state of a trial's model",
    key=("trial", "task", "split", "state", "image", "metric"),
    own_columns=(
        *_WHICH_SCORE,
        Column("metric", "text", "such as accuracy; accuracy/<kind> over questions of one kind"),
        Column("value", "float", "the metric's value", "fraction"),
        Column("standard_error", "float", "clustered by image; null where not estimated"),
        Column("items", "integer", "questions behind the value", "questions"),
    ),
)

CURVES = Table(
    name="curves",
    meaning="repair, step by step",
    key=("trial", "step"),
    own_columns=(
        Column("step", "integer", "optimiser step, from 1"),
        Column("loss", "float", "what is minimised: ce and kl as weighted, or the features' error"),
        Column("ce", "float", "cross-entropy on the answers; null for features", "nats"),
        Column("kl", "float", "divergence from the dense teacher", "nats"),
        Column("learning_rate", "float", "learning rate of the step"),
        Column("gradient_norm", "float", "gradient norm before clipping; null: fp16 skipped it"),
        Column("examples_per_second", "float", "questions per second, all workers", "1/second"),
        Column("peak_memory_gib", "float", "most memory in use, on any worker", "GiB"),
        Column("micro_batch", "integer", "examples per forward pass of a worker", "questions"),
    ),
)

LAYERS = Table(
    name="layers",
    meaning="each prunable matrix: what it was to lose and what it lost",
    key=("trial", "name"),
    own_columns=(
        Column("name", "text", "qualified name of the module that owns the weight"),
        Column("tower", "text", "vision or language"),
        Column("block", "integer", "number of its transformer block in the tower, from 0"),
        Column("rows", "integer", "output features"),
        Column("columns", "integer", "input features"),
        Column("method", "text", "pruning method"),
        Column("group", "text", "where weights competed: row, matrix, tower, all or pattern"),
        Column("pattern", "text", "N:M, if that was asked"),
        Column("requested_zeros", "integer", "zeros that its share of the target is", "weights"),
        Column("zeros", "integer", "zeros counted after pruning", "weights"),
        Column("requested_sparsity", "float", "its share of the target", "fraction"),
        Column("sparsity", "float", "zeros counted after pruning / its weights", "fraction"),
        Column("zeros_after_merge", "integer", "zeros counted after repair and merge", "weights"),
        Column(
            "positions",
            "integer",
            "rows that it reads in one forward pass over the first evaluation question",
        ),
        Column(
            "output_error",
            "float",
            "share of its squared output lost by pruning; null without Gram matrix (a tower whose "
            "own take more than 256 MiB, unless its method reads them) or without output",
        ),
        Column("seconds", "float", "time to prune it", "seconds"),
    ),
)

ANSWERS = Table(
    name="answers",
    meaning="every answer that the objective's scores are made of",
    key=("trial", "task", "split", "state", "image", "example_id"),
    own_columns=(
        *_WHICH_SCORE,
        Column("example_id", "text", "which question on which image"),
        Column("image_id", "text", "which image"),
        Column("answer", "text", "the model's answer"),
        Column("true_answer", "text", "the true answer: of several, the one that counts as such"),
        Column("correct", "boolean", "whether it equals the true answer"),
        Column("value", "float", "its own score: 1 if right, agreement, CIDEr or log-probability"),
        Column("weight", "float", "tokens that a log-probability is the sum over; null: 1"),
        Column(
            "image_value",
            "float",
            "its image's own score, alike in all its rows: in retrieval 1 if a caption of the "
            "image is found first; null elsewhere",
        ),
    ),
)

PROPOSALS = Table(
    name="proposals",
    meaning="which point the search proposed, and what it knew when it did",
    key=("trial", "attempt"),
    of_attempts=False,
    own_columns=(
        Column("number", "integer", "number of the proposal, from 0"),
        Column("key", "text", "hash of all that can change the trial's result"),
        Column("point", "json", "field → value"),
        Column("seen", "texts", "trials whose results the proposal is a function of, if any"),
        Column("sampler", "text", "grid, random, qmc, tpe, gp, nsga2 or map"),
        Column("system_attrs", "json", "the sampler's own notes"),
        Column("reason", "text", "why this attempt: null for the first, else what went wrong"),
        Column(
            "tries", "integer", "how many tries `retry` counts with this one; a redo begins at 1"
        ),
        Column(
            "micro_batch", "integer", "of repair, where an attempt ran out of memory", "questions"
        ),
    ),
)

RUNGS = Table(
    name="rungs",
    meaning="how trials stood at the rungs of early stopping, and which ended there",
    key=("trial", "step"),
    of_attempts=False,
    own_columns=(
        Column("number", "integer", "number of the trial's proposal"),
        Column("step", "integer", "repair steps done; 0 is before repair"),
        Column("value", "float", "the objective then, on the rung's questions"),
        Column("threshold", "float", "below it the trial ends; null while too few were here"),
        Column("stopped", "boolean", "whether the trial ended here"),
    ),
)

EVENTS = Table(
    name="events",
    meaning="what happened to the sweep, and which trials began",
    key=("trial", "attempt", "epoch", "kind", "detail"),
    of_attempts=False,
    own_columns=(
        Column(
            "kind",
            "text",
            "started, resumed, grown, trial_started, trial_waits (for a place on the nodes), "
            "trial_placed; at its end finished, interrupted, stopped, cancelled or hopeless",
        ),
        Column("detail", "json", "field → value"),
    ),
)

EVENTS_ORDER = [("epoch", "ascending"), ("committed", "ascending")]
"""A driver's events by its clock; those of two, whose clocks may differ, by their epochs."""

DATA = Table(
    name="data",
    meaning="which examples each purpose used; purposes are disjoint by image",
    key=("purpose", "task", "split", "samples", "seed"),
    of_attempts=False,
    own_columns=(
        Column("purpose", "text", "calibration, repair or evaluate"),
        Column("task", "text", "name of the task"),
        Column("split", "text", "split of the task's examples"),
        Column("samples", "integer", "how many examples", "questions"),
        Column("seed", "integer", "seed of the draw"),
        Column("image_ids", "texts", "the distinct images, in order"),
        Column("example_ids", "texts", "the examples, in order"),
        Column("left_out", "integer", "bad items of the data that were skipped", "items"),
        Column("left_out_ids", "texts", "which, each with what is wrong with it"),
    ),
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (TRIALS, SCORES, CURVES, LAYERS, ANSWERS, PROPOSALS, RUNGS, EVENTS, DATA)
}


@cache
def arrow_schema(name: str) -> "pyarrow.Schema":
    """Returns a table's pyarrow schema, with meaning and unit of each column in its metadata."""
    import pyarrow as pa

    kinds: dict[Kind, Any] = {
        "text": pa.string(),
        "integer": pa.int64(),
        "float": pa.float64(),
        "boolean": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"),
        "texts": pa.list_(pa.string()),
        "json": pa.string(),
    }
    table = TABLES[name]
    fields = [
        pa.field(
            column.name,
            kinds[column.kind],
            metadata={"description": column.meaning, "unit": column.unit, "kind": column.kind},
        )
        for column in table.columns
    ]
    return pa.schema(
        fields,
        metadata={
            "ressa.table": name,
            "ressa.version": str(SCHEMA_VERSION),
            "description": table.meaning,
        },
    )


@cache
def plain_schema(name: str) -> "pyarrow.Schema":
    """Returns a table's pyarrow schema without meanings and units: what its rows have in memory."""
    import pyarrow as pa

    return pa.schema([(field.name, field.type) for field in arrow_schema(name)])
