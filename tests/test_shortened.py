"""What tables in a terminal leave out because all rows share it, and say once."""

import pandas as pd

from ressa.cli.shortened import curved, layered, ordered

ROW = {
    **{"one": "prune.method=wanda, after repair", "other": "prune.method=dsnot, after repair"},
    **{"scope": "map", "tau": 0.5, "low": 0.25, "high": 0.75, "pairs": 10, "swapped": 2},
    **{"swapped_models": 1, "swapped_allocations": None},
    **{"allocations": 5, "runs": 1, "pictures": 99},
}


def test_what_two_conditions_share_and_counts_of_all_rows_are_said_once() -> None:
    other = ROW | {"other": "prune.method=random, after repair", "tau": -0.5}
    title, rows = ordered([ROW, other], by="prune.method")
    about = "prune.method, after repair"
    assert title == f"{about} · one: {ROW['one']} · allocations: 5 · runs: 1 · pictures: 99"
    assert [row["other"] for row in rows] == ["dsnot", "random"]
    assert list(rows[0]) == ["other", "scope", "tau", "low", "high", "swapped", "swapped_models"]
    assert rows[0]["swapped"] == "2 of 10"


def test_conditions_of_a_single_row_stand_above_it() -> None:
    title, (row,) = ordered([ROW], by="prune.method")
    assert f"one: {ROW['one']} · other: {ROW['other']}" in title
    assert "one" not in row


RESULTS = pd.DataFrame(
    {
        "trial": ["dense-repaired", "t001"],
        "role": ["baseline", "search"],
        "vision_sparsity": [0.0, 0.4],
        "language_sparsity": [0.0, 0.75],
        "options": "",
        "score": [1.0, 0.994],
    }
)


def test_layers_are_named_within_their_block_which_has_a_row_of_its_own() -> None:
    own = {"trial": "t001", "tower": "vision", "weights": 100, "zeros": 40, "sparsity": 0.4}
    names = {"model.layers.0.mlp.fc1": 0, "model.layers.0.attn.q": 0, "model.layers.1.mlp.fc1": 1}
    layers = [own | {"name": n, "block": b, "output_error": 0.01} for n, b in names.items()]
    layers[1] |= {"zeros": 60, "sparsity": 0.6, "output_error": 0.03}
    title, rows = layered(pd.DataFrame(layers), RESULTS)
    assert title == "layers of t001 40:75, score 99.4"
    assert [row["layer"] for row in rows] == ["mlp.fc1", "attn.q", "all of it", "fc1"]
    assert (rows[2]["sparsity"], rows[2]["output_error"]) == ("0.500", "2.0")


def test_curves_are_thinned_out_and_keep_their_ends() -> None:
    steps = [{"step": n, "loss": 1 / n} for n in range(1, 102)]
    curves = [{"trial": name} | row for name in RESULTS["trial"] for row in steps]
    title, rows = curved(pd.DataFrame(curves), RESULTS, chosen=False)
    assert "of the dense model and of the best trials" in title
    assert list(rows[0]) == ["step", "dense-repaired", "t001 40:75"]
    assert (rows[0]["step"], rows[-1]["step"]) == (1, 101)
    assert len(rows) <= 22
