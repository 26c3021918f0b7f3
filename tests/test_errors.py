"""Errors say what to do next, by class and by exit code."""

import copy

import pytest

from ressa import errors


def all_errors(root: type[errors.RessaError] = errors.RessaError) -> list[type[errors.RessaError]]:
    return [root, *(found for sub in root.__subclasses__() for found in all_errors(sub))]


def test_the_tree_in_the_docstring_names_every_error():
    own = [error for error in all_errors() if error.__module__ == errors.__name__]
    for error in own:
        assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SpecError, 2),
        (errors.InfeasibleAllocation, 2),
        (errors.MissingExtraError, 2),
        (errors.NotFoundError, 3),
        (errors.ConflictError, 4),
        (errors.ClusterError, 5),
        (errors.StoreError, 5),
        (errors.PruneError, 1),
        (errors.VerificationError, 7),
    ],
)
def test_exit_codes_are_the_documented_ones(error, code):
    assert error.exit_code == code


def test_an_unknown_name_comes_with_the_nearest_and_all_known():
    error = errors.UnknownNameError("prune method", "wnada", ["wanda", "magnitude"])
    assert str(error) == (
        "unknown prune method 'wnada'. Did you mean 'wanda'? Known: magnitude, wanda."
    )
    assert "Did you mean" not in str(errors.UnknownNameError("task", "zzz", ["easy-vqa"]))


def test_errors_travel_between_processes():
    # Copying goes the way of pickling, by `__reduce_ex__`.
    failure = copy.copy(errors.RepairError("diverged", "numeric"))
    assert (type(failure), str(failure), failure.failure) == (
        errors.RepairError,
        "diverged",
        "numeric",
    )
    fault = copy.copy(errors.SpecError("a\nb", ["a", "b"]))
    assert (str(fault), fault.faults) == ("a\nb", ("a", "b"))
    unknown = copy.copy(errors.UnknownNameError("task", "x", ["y"]))
    assert (unknown.name, unknown.known) == ("x", ["y"])
