"""`ressa data check`: what a data set holds, where it is from, and what is wrong with it."""

import json
import sys

import pytest

from ressa.cli import main
from ressa.data.check import check
from ressa.data.files import DataError
from ressa.errors import SpecError
from tests.data import published


@pytest.fixture
def ressa(monkeypatch, capsys):
    def call(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["ressa", "data", "check", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    return call


def test_a_sound_data_set_is_counted_and_says_where_it_is_from(ressa, tmp_path):
    root = published.vqav2(tmp_path, pictures=60, per_picture=2)
    code, out, err = ressa("vqa", str(root), "-o", "json")
    rows = {row["split"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["validation"]["from"] == "val2014"
    assert (rows["validation"]["examples"], rows["validation"]["pictures"]) == (120, 60)
    assert rows["train"]["pictures"] + rows["calibration"]["pictures"] == 60
    assert "format   vqav2" in err
    assert "source   http://visualqa.org" in err
    assert "licence  CC BY 4.0" in err


def test_what_is_broken_is_named_and_the_exit_code_says_so(ressa, tmp_path):
    root = published.vqav2(tmp_path, pictures=60, per_picture=2)
    (root / "val2014" / "COCO_val2014_000000000001.jpg").unlink()
    middle = root / "val2014" / "COCO_val2014_000000000002.jpg"
    content = bytearray(middle.read_bytes())
    content[2:400] = bytes(398)  # its ends are whole
    middle.write_bytes(content)
    code, _, err = ressa("vqa", str(root))
    assert code == 1
    assert "2 × no picture (1000, 1001)" in err
    assert "2 × damaged picture (2000, 2001)" in err


def test_the_format_is_found_out(tmp_path):
    assert check("vqa", str(published.gqa(tmp_path / "gqa"))).source.format == "gqa"
    assert check("captioning", str(published.nocaps(tmp_path / "n"))).source.format == "nocaps"
    flickr = published.karpathy(tmp_path / "f", name="flickr30k", pictures=3)
    report = check("retrieval", str(flickr))
    assert report.source.format == "karpathy"
    assert any("Flickr30k's for research" in word for word in report.words)


def test_columns_are_given_as_in_a_sweep_file(ressa, tmp_path):
    root = published.saved(tmp_path / "saved", pictures=40)
    code, out, err = ressa(
        "vqa",
        str(root),
        "--set",
        "columns.image=picture",
        "--set",
        "columns.question=asked",
        "--set",
        "columns.answers=said",
        "-o",
        "json",
    )
    assert code == 0, err
    rows = {row["split"]: row for row in json.loads(out)}
    assert rows["validation"]["examples"] == 40
    assert "has no split 'test'" in rows["test"]["note"]


def test_rows_that_show_one_picture_under_two_ids_are_counted(tmp_path):
    root = published.questions_on_one_picture(tmp_path / "saved", pictures=6)
    columns = {"image": "picture", "question": "asked", "answers": "said"}
    report = check("vqa", str(root), "datasets", {"columns": columns})
    assert any("12 of 12 rows show a picture that another row" in word for word in report.words)
    report = check("vqa", str(root), "datasets", {"columns": columns | {"image_id": "text"}})
    assert not any("another row" in word for word in report.words)


def test_what_cannot_be_read_at_all_is_one_message(ressa, tmp_path):
    with pytest.raises(SpecError, match=r"files of none of these formats: vqav2 \(train2014"):
        check("vqa", str(published.nocaps(tmp_path / "nocaps")))
    with pytest.raises(DataError, match=r"wants v2_OpenEnded_mscoco_val2014_questions.json"):
        check("vqa", str(tmp_path), "vqav2")
    assert ressa("vqqa", str(tmp_path))[0] == 2
    assert ressa("vqa", str(tmp_path / "nowhere"))[0] == 2
