"""Which questions a step sees: fixed by the seed, image by image, shared out equally."""

import errno
import os
from itertools import islice

import pytest
import torch
from pruned import dense_vlm, questions, repair_plan, task

from ressa.errors import RepairError
from ressa.records import Example
from ressa.repair.batches import QUESTIONS_PER_IMAGE, RepairData, global_batches, pieces, share
from ressa.repair.engine import accumulation


def asked(*counts: int) -> list[Example]:
    """As many questions about each image as `counts` says."""
    return [
        Example(id=f"{image}/{q}", image_id=str(image), question="?", answer="yes", kind="any")
        for image, count in enumerate(counts)
        for q in range(count)
    ]


def test_every_batch_is_full_and_keeps_the_questions_of_an_image_together() -> None:
    examples = asked(9, 3, 5, 1, 12, 4)
    for batch in islice(global_batches(examples, 10, seed=0), 50):
        assert sum(map(len, batch)) == 10
        for group in batch:
            assert len({examples[index].image_id for index in group}) == 1
            assert len(set(group)) == len(group) <= QUESTIONS_PER_IMAGE


def test_one_pass_shows_every_image_once() -> None:
    examples = asked(4, 4, 4, 4, 4, 4)
    batches = list(islice(global_batches(examples, 8, seed=0), 3))
    shown = [examples[group[0]].image_id for batch in batches for group in batch]
    assert sorted(shown) == list("012345")


def test_the_order_follows_from_the_seed() -> None:
    examples = asked(*[6] * 20)

    def first(seed: int) -> list[list[list[int]]]:
        return list(islice(global_batches(examples, 16, seed), 5))

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_passes_differ_in_order_and_in_questions() -> None:
    examples = asked(*[9] * 8)
    one, two = islice(global_batches(examples, 32, seed=0), 2)
    assert one != two
    assert {i for group in one for i in group} != {i for group in two for i in group}


def test_a_batch_may_be_larger_than_the_data() -> None:
    (batch,) = islice(global_batches(asked(2, 3), 12, seed=0), 1)
    assert sum(map(len, batch)) == 12


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_workers_share_a_batch_out_equally_and_in_order(workers: int) -> None:
    for batch in islice(global_batches(asked(*[9, 3, 5, 1] * 10), 64, seed=0), 20):
        shares = [share(batch, rank, workers) for rank in range(workers)]
        assert [i for part in shares for i in part] == [i for group in batch for i in group]
        assert {len(part) for part in shares} == {64 // workers}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_no_micro_batch_of_any_size_is_empty_or_larger_than_asked(workers: int) -> None:
    batch = next(global_batches(asked(*[9, 3, 5, 1] * 10), 24, seed=0))
    for size in range(1, 24 // workers + 1):
        how_many = accumulation(repair_plan(batch_size=24), workers, size)
        cut = [pieces(share(batch, rank, workers), how_many) for rank in range(workers)]
        assert all(1 <= len(piece) <= size for part in cut for piece in part)


def test_pieces_are_nearly_equal_and_complete() -> None:
    assert pieces(range(7), 3) == [[0, 1], [2, 3], [4, 5, 6]]


def test_selected_rows_are_what_encoding_them_would_give() -> None:
    vlm, examples = dense_vlm(), questions(20)
    rows = [17, 3, 4, 3, 11]
    selected = vlm.encode(examples, task().image, answers=True).select(rows)
    encoded = vlm.encode([examples[row] for row in rows], task().image, answers=True)
    assert len(selected.inputs["pixel_values"]) == len(encoded.inputs["pixel_values"])
    with torch.no_grad():
        got, wanted = vlm.answer_logits(selected), vlm.answer_logits(encoded)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(got[1], wanted[1])


def test_questions_wait_in_main_memory_and_go_where_the_model_is_by_the_micro_batch() -> None:
    vlm = dense_vlm()
    vlm.model.to("meta")  # as far from main memory as a GPU is
    kept = []

    def keep(encode):
        kept.append(encode())
        return kept[0]

    data = RepairData(vlm, questions(), task(), None, repair_plan(), 0, keep)
    batch, _ = data.micro_batch(data.pieces(0, 4)[0])
    for one, place in ((kept[0], "cpu"), (batch, "meta")):
        tensors = [*one.inputs.values(), one.image_index, one.labels]
        assert {tensor.device.type for tensor in tensors} == {place}


def test_a_disk_without_room_for_the_pictures_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ressa.models.vlm._IN_MEMORY", 1000)
    monkeypatch.setattr("ressa.memory.os.posix_fallocate", full)
    plan = repair_plan(steps=1)
    with pytest.raises(RepairError, match=r"do not fit in .*No space left .*TMPDIR") as error:
        RepairData(dense_vlm(), questions(8), task(), None, plan, seed=0)
    assert error.value.failure == "node"
