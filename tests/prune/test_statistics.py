import numpy as np
import pytest
import torch
from layers import correlated_inputs, drawn_weight, statistics_of

from ressa.prune.statistics import add_weighted_gram_, squared_output, weighted_moments


def test_moments_count_each_row_as_often_as_it_weighs():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert weighted_moments(rows, torch.tensor([1, 2])).tolist() == [7, 10, 19, 36, 3]


@pytest.mark.parametrize("columns", [1, 5, 512, 700])
@pytest.mark.parametrize("weights", [[1, 2, 1, 5, 3, 1], [1] * 6], ids=str)
def test_a_gram_matrix_is_that_of_the_repeated_rows(columns, weights):
    rows, weights = correlated_inputs(tokens=6, columns=columns), torch.tensor(weights)
    repeated = rows.repeat_interleave(weights, dim=0).numpy()
    expected = np.triu(repeated.T @ repeated)
    gram = torch.ones(columns, columns, dtype=rows.dtype)
    add_weighted_gram_(gram, rows, weights)
    got = gram.triu().numpy() - np.triu(np.ones_like(expected))
    np.testing.assert_allclose(got, expected, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("columns", [5, 512, 700])
def test_a_sum_of_parts_is_that_of_one_gram_matrix_bit_for_bit(columns):
    batches = [correlated_inputs(tokens=300, columns=columns, seed=seed).float() for seed in (0, 1)]
    ones = torch.ones(300)
    whole, parts = torch.zeros(columns, columns), []
    for rows in batches:
        add_weighted_gram_(whole, rows, ones)
        parts.append(torch.zeros(columns, columns))
        add_weighted_gram_(parts[-1], rows, ones)
    assert whole.triu().equal((torch.zeros(columns, columns) + parts[0] + parts[1]).triu())


@pytest.mark.parametrize("columns", [1, 5, 512, 700])
def test_the_squared_output_is_that_of_the_inputs(columns):
    inputs, weight = correlated_inputs(tokens=9, columns=columns), drawn_weight(columns=columns)
    expected = float((inputs @ weight.T).square().sum())
    assert squared_output(weight, statistics_of(inputs).gram) == pytest.approx(expected, rel=1e-12)


def test_a_constant_input_has_no_variance():
    statistics = statistics_of(torch.full((7, 3), 0.1, dtype=torch.float64))
    assert statistics.variance.tolist() == pytest.approx([0, 0, 0], abs=1e-17)
    assert (statistics.variance >= 0).all()


def test_variance_is_over_all_tokens():
    inputs = correlated_inputs(offset=3.0)
    np.testing.assert_allclose(statistics_of(inputs).variance, inputs.numpy().var(axis=0))
