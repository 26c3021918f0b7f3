"""A store or a sweep file from a stranger runs no code and fills no memory."""

import ast
from pathlib import Path

import pytest

import ressa
from ressa.errors import RessaError, SpecError
from ressa.store import SweepStore, open_store, rows
from ressa.store.schema import plain_schema

PACKAGE = Path(ressa.__file__).parent
UNPICKLERS = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}


def test_nothing_in_ressa_reads_a_pickle() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert UNPICKLERS.isdisjoint(alias.name.split(".")[0] for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in UNPICKLERS
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                call = f"{node.value.id}.{node.attr}"
                assert call not in {"torch.load", "np.load", "numpy.load", "yaml.load"}, path


@pytest.mark.parametrize(
    "text",
    [
        "ressa: !!python/object/apply:os.system ['touch {folder}/ran']",
        "ressa: 1\nname: !!python/name:os.system x",
        "a: &a [x]\nb: [*a, *a]\n",
        "<<: {ressa: 1}\n",
        "ressa: 1\nname: ../../outside\nmodel: pocket-blip2\nspace: {vision_sparsity: [0.5]}",
    ],
)
def test_a_stored_spec_runs_nothing(sweep: SweepStore, tmp_path: Path, text: str) -> None:
    from ressa.spec import spec_from_yaml

    path = Path(sweep.store.location, sweep.prefix, "spec.yaml")
    path.write_text(text.replace("{folder}", str(tmp_path)))
    with pytest.raises(SpecError):
        spec_from_yaml(open_store(sweep.store.location).sweep(sweep.name).spec_text())
    assert {found.name for found in tmp_path.iterdir()} == {"results"}


def test_a_small_file_that_claims_many_rows_is_named_and_not_read(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    monkeypatch.setattr(rows, "MAX_ROWS", 100_000)
    schema = plain_schema("events")
    count = rows.MAX_ROWS + 1
    names = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), count), ["x"])
    columns = {"kind": names.cast(pa.string())}
    bomb = pa.table(
        [columns.get(field.name, pa.nulls(count, field.type)) for field in schema], schema=schema
    )
    content = rows.encode_merged("events", bomb, ["t000-a0-e1-0123456789ab.parquet"])
    assert len(content) < 100_000
    folder = Path(sweep.store.location, sweep.prefix, "events")
    sweep.event("started", epoch=1)
    for name in ("bomb.parquet", "merged-1-9-0123456789ab.parquet"):
        (folder / name).write_bytes(content)
    reader = open_store(sweep.store.location).sweep(sweep.name)
    assert list(reader.events()["kind"]) == ["started"]
    assert len(reader.skipped) == 2
    assert all("more than a file may hold" in reason for reason in reader.skipped.values())


def test_a_models_own_code_needs_the_users_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    from ressa.models.loading import TRUST, plan_towers
    from ressa.spec import ModelRef

    monkeypatch.delenv(TRUST, raising=False)
    with pytest.raises(RessaError, match=f"set {TRUST}=1"):
        plan_towers(ModelRef(id="someone/model", trust_remote_code=True))
