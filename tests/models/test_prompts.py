"""Room for pictures in prompts, and what is kept of them."""

import pytest
import torch

from ressa.models.prompts import Recent, Room, Texts, room_in

MARK = 4


def padded(ids: list[int]) -> Texts:
    """A processor that fills prompts up on the left."""
    return of([0] * (12 - len(ids)) + [MARK] + ids)


def ended(ids: list[int]) -> Texts:
    """One that also puts something behind the prompt."""
    return of([MARK, MARK, *ids, 9])


def doubled(ids: list[int]) -> Texts:
    """One that shows pictures at every mark."""
    return of([i for one in ids for i in ([MARK, MARK] if one == MARK else [one])])


def of(ids: list[int]) -> Texts:
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.int)}


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_block_in_the_place_of_a_mark_is_found(at: int) -> None:
    def processed(ids: list[int]) -> Texts:
        texts = doubled(ids)
        return {**texts, "kinds": (texts["input_ids"] == MARK).long()}

    ids = [5, 6, 7]
    ids.insert(at, MARK)
    room = room_in(processed(ids), ids, MARK)
    assert room is not None
    other = [*range(10, 20), MARK, 20]
    made, wanted = room.made(other), processed(other)
    assert made is not None
    assert room.makes(wanted, other)
    assert {name: tensor.dtype for name, tensor in made.items()} == {
        name: tensor.dtype for name, tensor in wanted.items()
    }
    assert room.made([5, 6]) is None, "no mark"
    assert room.made([MARK, 5, MARK]) is None, "two"


@pytest.mark.parametrize("first", [[5, 6], [MARK, 5, MARK]])
def test_what_is_not_one_block_is_not_taken_for_one(first: list[int]) -> None:
    process = ended if MARK not in first else doubled
    assert room_in(process(first), first, MARK) is None


def test_a_prompt_of_another_length_shows_what_was_chance() -> None:
    room = room_in(padded([5, 6, 7]), [5, 6, 7], MARK)
    assert isinstance(room, Room)
    assert room.makes(padded([8, 8, 8]), [8, 8, 8]), "of this length all are alike"
    assert not room.makes(padded([5, 6]), [5, 6])


def test_inputs_that_differ_along_the_prompt_are_left_to_the_processor() -> None:
    texts = of([MARK, 5, 6])
    assert room_in({**texts, "words": torch.tensor([0, 1, 2])}, [5, 6], MARK) is None
    assert room_in({**texts, "qformer_input_ids": torch.tensor([5, 6])}, [5, 6], MARK) is None


def test_what_was_used_last_is_kept() -> None:
    recent: Recent[int, str] = Recent(most=3)
    for number in range(3):
        recent.put(number, str(number))
    assert recent.get(0) == "0"
    recent.put(3, "3")
    assert [recent.get(number) for number in range(4)] == ["0", None, "2", "3"]
