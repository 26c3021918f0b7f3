import torch

from ressa.prune.packing import pack, unpack

TENSORS = {"b": torch.arange(5), "a/é": torch.ones(2, 3, dtype=torch.bfloat16)}


def test_tensors_and_note_come_back():
    tensors, note = unpack(pack(TENSORS, {"why": ["because", 1, None, 0.1], "ü": "«"}))
    assert tensors.keys() == TENSORS.keys()
    assert all(tensors[name].equal(value) for name, value in TENSORS.items())
    assert note == {"why": ["because", 1, None, 0.1], "ü": "«"}


def test_equal_content_gives_equal_bytes_in_any_order():
    note = {"first": 1, "second": 2}
    again = pack(dict(reversed(TENSORS.items())), dict(reversed(note.items())))
    assert again == pack(TENSORS, note)
