"""Published arrangements of files: what is read, dealt, drawn, and found broken."""

import io
import json

import numpy as np
import pandas
import pytest
from PIL import Image
from PIL.ExifTags import Base

from ressa.catalog import task_facts
from ressa.data import open_data
from ressa.data.captioning import cut
from ressa.data.check import check
from ressa.data.files import DamagedData, DataError, clean_caption, clean_question
from ressa.spec import DataSource, spec_from_mapping
from tests.data import published

SPLITS = ("train", "calibration", "validation")


def open_(task: str, layout: str, path, **fields):
    """Opens a data set as a sweep file that says no more than this would."""
    entry = {"task": task, "format": layout, "path": str(path)} | fields
    content = {"ressa": 1, "model": "pocket-blip2", "space": {"sparsity": 0.5}}
    spec = spec_from_mapping(content | {"data": {"mine": entry}}).spec
    return open_data("mine", spec.data["mine"])


def test_vqav2_is_read_as_it_is_published(tmp_path):
    task = open_("vqa", "vqav2", published.vqav2(tmp_path))
    examples = task.examples("validation")
    assert len(examples) == 24 * 4
    first, original = examples[0], published.by_picture("validation", 1)[0][0]
    assert first.id == "1000"
    assert first.image_id == "COCO_val2014_000000000001"
    assert first.question == f"Question: {original.question} Short answer:"
    assert (first.answer, len(first.references)) == (original.answer, 10)
    assert first.kind in ("yes/no", "other")
    assert task.image(first.image_id).size == (64, 64)
    assert task.layout.origin() == {"source": "http://visualqa.org", "licence": "CC BY 4.0"}


def test_splits_share_no_picture_and_are_the_same_for_ever(tmp_path):
    task = open_("vqa", "vqav2", published.vqav2(tmp_path, pictures=60, per_picture=1))
    images = {split: {e.image_id for e in task.examples(split)} for split in SPLITS}
    assert len(images["train"]) + len(images["calibration"]) == 60
    assert not images["train"] & images["calibration"]
    assert images["calibration"] == {"COCO_train2014_000000000050"}


def test_okvqa_and_gqa_are_read_as_they_are_published(tmp_path):
    okvqa = open_("vqa", "okvqa", published.vqav2(tmp_path / "okvqa", pictures=2, prefix=""))
    assert len(okvqa.examples("validation")) == 8
    gqa = open_("vqa", "gqa", published.gqa(tmp_path / "gqa"))
    example = gqa.examples("validation")[0]
    assert example.image_id == "gqa/n161313"
    assert example.references == (example.answer,)
    assert gqa.image(example.image_id).mode == "RGB"


def test_captions_are_scored_by_picture_and_learnt_one_by_one_behind_a_prefix(tmp_path):
    dealt = {"train": "train[20%:]", "calibration": "train[:20%]", "validation": "val"}
    task = open_("captioning", "karpathy", published.karpathy(tmp_path), splits=dealt)
    scored = task.examples("validation")
    assert len(scored) == 24
    assert len(scored[0].references) == 2
    assert scored[0].question == "A short image caption."
    learnt = task.examples("train") + task.examples("calibration")
    assert len(learnt) == 48
    originals = {clean_caption(text) for e in scored for text in e.references}
    assert all(e.question and e.answer and e.verbatim for e in learnt)
    assert {e.question + e.answer for e in learnt} & originals
    assert all(len(e.question) <= (len(e.question) + len(e.answer)) // 2 for e in learnt)


def test_captions_are_scored_as_they_are_written_and_learnt_as_the_papers_code_reads_them(
    tmp_path,
):
    """Rows about one picture are one example, with all of their captions."""
    rows = [
        {"file": f"{name}.png", "caption": text}
        for name, text in (
            ("a", "It reads 10:30 near the U.S. flag."),
            ("b", "Two dogs!"),
            ("a", ' A clock; "old" '),
            ("b", "..."),
        )
    ]
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    for split in ("train", "validation"):
        pandas.DataFrame(rows).to_csv(tmp_path / f"{split}.csv", index=False)
    task = open_(
        "captioning",
        "datasets",
        tmp_path,
        columns={"image": "file", "answers": "caption"},
        splits={"train": "train", "validation": "validation"},
        on_bad_item="skip",
    )
    one, other = task.examples("validation")
    assert one.references == ("It reads 10:30 near the U.S. flag.", 'A clock; "old"')
    assert other.references == ("Two dogs!",)
    learnt = [example.question + example.answer for example in task.examples("train")]
    assert learnt == ["it reads 10 30 near the u s flag", "a clock old", "two dogs"]


def test_a_caption_is_cut_at_a_character_of_its_first_half():
    places = {len(cut("there is a cat", str(seed))[0]) for seed in range(300)}
    assert places == set(range(1, 8))
    assert cut("there is a cat", "7") == cut("there is a cat", "7")


def test_nocaps_gives_each_picture_its_domain(tmp_path):
    task = open_("captioning", "nocaps", published.nocaps(tmp_path))
    kinds = [example.kind for example in task.examples("validation")]
    assert kinds[:3] == ["in-domain", "near-domain", "out-domain"]
    with pytest.raises(DataError, match=r"mine has no split 'train'; data.mine names validation"):
        task.examples("train")


def test_flickr_gives_a_caption_each_to_retrieve(tmp_path):
    root = published.karpathy(tmp_path, name="flickr30k", pictures=4)
    task = open_("retrieval", "karpathy", root, model="org/matching")
    examples = task.examples("test")
    assert len(examples) == 8
    assert examples[0].image_id == examples[0].answer == "flickr30k/1000009"


def test_choices_hold_the_right_answer(tmp_path):
    task = open_("multiple_choice", "aokvqa", published.aokvqa(tmp_path))
    for example in task.examples("validation"):
        assert example.answer in example.choices
        assert len(example.choices) == 4


@pytest.mark.parametrize("task", ["vqa", "captioning", "multiple_choice", "perplexity"])
def test_a_hugging_face_data_set_is_read_by_its_columns(tmp_path, task):
    columns = {
        "image": "picture",
        "question": "asked",
        "answers": "said",
        "choices": "options",
        "correct": "right",
        "captions": "text",
    }
    opened = open_(task, "datasets", published.saved(tmp_path / "saved"), columns=columns)
    examples = opened.examples("validation")
    assert len(examples) == 12
    assert opened.image(examples[3].image_id).size == (64, 64)
    original = published.by_picture("validation", 12, 1)[3][0]
    assert original.answer in (examples[3].answer, *published.caption([original]).split())


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    task = open_("vqa", "datasets", published.saved(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"no column 'image'; it has asked, .*data.columns.image"):
        task.examples("validation")


def test_a_folder_of_json_lines_and_one_without_pictures_are_read_too(tmp_path):
    rows = [{"question": f"what is {n}?", "answers": [str(n)]} for n in range(5)]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = open_("vqa", "datasets", tmp_path, columns={"image": None})
    assert [e.answer for e in task.examples("validation")] == list("01234")
    assert task.image(task.examples("validation")[0].image_id).size == (224, 224)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_split_s_table_is_read_beside_folders_of_pictures(tmp_path, ending):
    asked = [(f"pictures/{n} ü.png", said) for n in range(6) for said in ("red", "circle")]
    (tmp_path / "pictures").mkdir()
    for name, _ in asked:
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    rows = [{"file": file, "question": "what?", "answers": said} for file, said in asked]
    for split in ("train", "val", "my_test"):
        table = pandas.DataFrame(rows)
        if ending == "csv":
            table.to_csv(tmp_path / f"{split}.csv", index=False)
        else:
            table.to_json(tmp_path / f"{split}.jsonl", orient="records", lines=True)
    task = open_("vqa", "datasets", tmp_path, columns={"image": "file"})
    for split in ("validation", "test"):
        examples = task.examples(split)
        assert [example.answer for example in examples] == [said for _, said in asked]
        # A picture is known by its file, so that its questions stay together.
        assert [e.image_id for e in examples] == [file for file, _ in asked]
        assert task.image(examples[0].image_id).size == (8, 8)


def csv_of(folder, task="vqa", *, columns, **rows):
    """Opens a table of a train split, without pictures."""
    pandas.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    return open_(
        task, "datasets", folder, columns={"image": None} | columns, splits={"train": "train"}
    )


def test_a_csv_is_read_as_it_is_written(tmp_path):
    said = ["3", "007", "None", "1.50"]
    task = csv_of(tmp_path, question=["what?"] * 4, answers=said, columns={})
    assert [example.answer for example in task.examples("train")] == said


def test_choices_that_are_no_list_and_ids_that_repeat_are_refused(tmp_path):
    rows = {"question": ["which?"] * 2, "choices": ["cat|dog"] * 2, "answer": ["cat"] * 2}
    with pytest.raises(DataError, match="'choices' holds a text, no list"):
        csv_of(tmp_path, "multiple_choice", **rows, columns={}).examples("train")
    rows = {"question": ["a?", "b?"], "answers": ["x", "y"], "number": ["1", "1"]}
    with pytest.raises(DataError, match="1 ids stand for several examples, such as 1"):
        csv_of(tmp_path, **rows, columns={"id": "number"}).examples("train")


def test_a_picture_too_large_to_decode_is_a_damaged_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("RGB", (8, 8)).save(tmp_path / "huge.png")
    table = pandas.DataFrame([{"file": "huge.png", "question": "what?", "answers": "red"}])
    table.to_csv(tmp_path / "train.csv", index=False)
    task = open_("vqa", "datasets", tmp_path, columns={"image": "file"}, splits={"train": "train"})
    with pytest.raises(DataError, match="damaged picture"):
        task.examples("train")


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    lies = Image.new("RGB", (16, 8), "blue")
    lies.putpixel((0, 7), (255, 0, 0))  # bottom left; stood up, top left
    tags = Image.Exif()
    tags[Base.Orientation] = 6
    lies.save(tmp_path / "phone.png", exif=tags)
    pandas.DataFrame([{"file": "phone.png", "question": "what?", "answers": "red"}]).to_csv(
        tmp_path / "train.csv", index=False
    )
    task = open_("vqa", "datasets", tmp_path, columns={"image": "file"}, splits={"train": "train"})
    picture = task.image(task.examples("train")[0].image_id)
    assert picture.size == (8, 16)
    assert picture.getpixel((0, 0)) == (255, 0, 0)


def test_answers_that_are_no_texts_are_read_as_texts_and_nulls_as_none(tmp_path, monkeypatch):
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    columns = {
        "question": (Value("string"), ["how many?"] * 3),
        "count": (Value("int64"), [5, 0, None]),
        "kind": (ClassLabel(names=["cat", "dog"]), [1, 0, -1]),
        "kinds": (Sequence(ClassLabel(names=["cat", "dog"])), [[1, 0], [0], []]),
        "many": (Sequence(Value("string")), [[None, "x"], ["y"], [None]]),
    }
    features = Features({name: feature for name, (feature, _) in columns.items()})
    rows = {name: values for name, (_, values) in columns.items()}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = {
        "count": [("5",), ("0",)],
        "kind": [("dog",), ("cat",)],
        "kinds": [("dog", "cat"), ("cat",)],
        "many": [("x",), ("y",)],
    }
    for column, said in expected.items():
        task = open_(
            "vqa",
            "datasets",
            "~/data",
            columns={"image": None, "answers": column},
            splits={"train": "train"},
            on_bad_item="skip",
        )
        examples, bad = task.draw("train")
        assert [example.references for example in examples] == said
        assert [item.reason for item in bad] == ["no answer"]


def broken(tmp_path, **fields):
    """VQAv2 with one picture cut short, one that is none, one away, and two bad answers."""
    root = published.vqav2(tmp_path, pictures=8, per_picture=2)
    folder = root / "val2014"
    whole = folder / "COCO_val2014_000000000001.jpg"
    whole.write_bytes(whole.read_bytes()[:-200])
    (folder / "COCO_val2014_000000000002.jpg").write_text("<html>404</html>")
    (folder / "COCO_val2014_000000000003.jpg").unlink()
    path = root / "v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    for answer in content["annotations"][8]["answers"]:
        answer["answer"] = " "
    del content["annotations"][9]
    path.write_text(json.dumps(content))
    return open_("vqa", "vqav2", root, **fields)


def test_bad_items_are_named_and_counted_and_stop_what_reads_them(tmp_path):
    with pytest.raises(DataError) as error:
        broken(tmp_path).examples("validation")
    message = str(error.value)
    assert "4 × damaged picture (1000, 1001, 2000, 2001)" in message
    assert "2 × no picture (3000, 3001)" in message
    assert "1 × empty answer (5000)" in message
    assert "1 × no answer (5001)" in message
    assert "data.mine.on_bad_item to skip" in message


def test_bad_items_are_left_out_where_the_spec_says_so(tmp_path):
    task = broken(tmp_path, on_bad_item="skip")
    examples, left_out = task.draw("validation")
    assert len(examples) == 8
    assert len(left_out) == 8
    assert {item.reason for item in left_out} == {
        "damaged picture",
        "no picture",
        "empty answer",
        "no answer",
    }
    assert len(task.examples("validation", 6)) == 6
    with pytest.raises(DataError, match=r"has 8 examples; 9 were asked for"):
        task.examples("validation", 9)


def test_a_picture_that_breaks_later_says_what_to_do(tmp_path):
    task = open_("vqa", "vqav2", published.vqav2(tmp_path, pictures=1))
    example = task.examples("validation")[0]
    path = tmp_path / "val2014" / f"{example.image_id}.jpg"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedData, match=r"picture COCO_val2014_000000000001 of mine cannot"):
        task.image(example.image_id)


def test_the_fingerprint_is_of_what_is_drawn_wherever_it_lies(tmp_path):
    here = open_("vqa", "vqav2", published.vqav2(tmp_path / "here", pictures=6))
    there = open_("vqa", "vqav2", published.vqav2(tmp_path / "there", pictures=6))
    assert here.fingerprint("validation", 8) == there.fingerprint("validation", 8)
    assert here.fingerprint("validation", 8) != here.fingerprint("validation", 8, 1)
    path = tmp_path / "there" / "v2_mscoco_val2014_annotations.json"
    path.write_text(path.read_text().replace('"something else"', '"nothing else"'))
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    changed = open_("vqa", "vqav2", tmp_path / "elsewhere")
    assert here.fingerprint("validation", 8) != changed.fingerprint("validation", 8)


def test_a_file_that_is_not_there_is_asked_for_by_its_name(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        open_("vqa", "vqav2", tmp_path / "nowhere").examples("validation")
    with pytest.raises(DataError, match=r"wants v2_OpenEnded_mscoco_val2014_questions.json in"):
        open_("vqa", "vqav2", tmp_path).examples("validation")


def test_texts_are_cleaned_as_the_papers_code_does():
    assert clean_question("What's THIS (here): a cat?") == "what's this here a cat?"
    assert clean_caption(' A "cat".  On a mat; asleep!\n') == "a cat on a mat asleep"
    assert len(clean_question("word " * 70).split()) == 50


def test_defaults_of_a_source_are_those_of_the_catalog():
    facts = task_facts("vqa")
    source = DataSource.model_validate(
        {"task": "vqa", "format": "vqav2", "path": "x", **facts.defaults}
    )
    assert source.decoding.beams == 5
    assert source.prompt == "Question: {} Short answer:"


def own_pictures(folder, files, columns=None, **fields):
    """A data set of rows in JSON lines, one file a split, each row with its picture's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in files.items():
        for row in rows:
            path = folder / row["file"]
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                colour = (len(row["file"]), row.get("red", 0), 0)
                Image.new("RGB", (8, 8), colour).save(path)
        lines = [json.dumps({"question": "what?", "answers": ["x"]} | row) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    dealt = fields.pop("splits", {split: split for split in files})
    columns = {"image": "file"} | (columns or {})
    return open_("vqa", "datasets", folder, columns=columns, splits=dealt, **fields)


def test_ids_that_count_anew_in_each_split_are_refused(tmp_path):
    rows = {
        split: [{"file": f"{split}/{n}.png", "red": at, "number": str(n)} for n in range(4)]
        for at, split in enumerate(("train", "test"))
    }
    task = own_pictures(tmp_path, rows, columns={"image_id": "number"})
    task.examples("train")
    with pytest.raises(DataError, match=r"id of a picture, 0, .* split train and .* in test"):
        task.examples("test")


def test_ids_that_hold_over_splits_name_one_picture(tmp_path):
    rows = [{"file": f"{n}.png", "number": str(n)} for n in range(4)]
    task = own_pictures(tmp_path, {"train": rows, "test": rows}, columns={"image_id": "number"})
    first, again = task.examples("train"), task.examples("test")
    assert {e.image_id for e in first} == {e.image_id for e in again}


def test_ids_may_repeat_where_there_are_no_pictures(tmp_path):
    rows = [{"file": f"{n}.png", "number": str(n)} for n in range(4)]
    columns = {"image": None, "image_id": "number"}
    task = own_pictures(tmp_path, {"train": rows, "test": rows}, columns=columns)
    assert len(task.examples("train")) == len(task.examples("test")) == 4


def test_a_check_refuses_ids_that_count_anew(tmp_path):
    rows = {
        split: [{"file": f"{split}/{n}.png", "red": at, "number": str(n)} for n in range(40)]
        for at, split in enumerate(("train", "test"))
    }
    own_pictures(tmp_path, rows)
    columns = {"image": "file", "image_id": "number"}
    with pytest.raises(DataError, match="Ids must hold over all splits"):
        check("vqa", str(tmp_path), "datasets", {"columns": columns})


def test_a_copy_under_another_name_is_dealt_alike_and_has_the_same_identity(tmp_path):
    rows = [{"file": f"{n}.png"} for n in range(40)]
    dealt = {"train": "train[30%:]", "calibration": "train[:30%]"}
    one, other = (
        own_pictures(tmp_path / name, {"train": rows}, splits=dealt) for name in ("a", "copy")
    )
    for split in dealt:
        assert one.examples(split) == other.examples(split)
        assert one.fingerprint(split) == other.fingerprint(split)


def test_a_slice_without_a_picture_says_how_it_is_dealt(tmp_path):
    rows = [{"file": f"{n}.png"} for n in range(3)]
    dealt = {"train": "train[1%:]", "calibration": "train[:1%]"}
    task = own_pictures(tmp_path, {"train": rows}, splits=dealt)
    with pytest.raises(DataError) as refused:
        task.examples("calibration", 8)
    assert str(refused.value) == (
        "mine's calibration split, train[:1%], has 0 examples; 8 were asked for. Give it a larger "
        "slice in data.mine.splits: pictures are dealt by a hash of their ids, so that of few "
        "pictures a small slice may get none."
    )
    with pytest.raises(DataError, match=r"8 were asked for\. Ask for 3 samples or fewer, or"):
        task.examples("train", 8)


def test_grey_of_16_bits_is_shown_in_8_and_32_bits_are_refused(tmp_path):
    grey = np.full((8, 8), 40_000, np.uint16)
    for name, values in (("deep.png", grey), ("deep.tiff", grey), ("real.tiff", grey / 65535)):
        values = values.astype(np.float32) if name == "real.tiff" else values
        Image.fromarray(values).save(tmp_path / name)
    rows = [{"file": name} for name in ("deep.png", "deep.tiff", "real.tiff")]
    task = own_pictures(tmp_path, {"train": rows}, on_bad_item="skip")
    examples, bad = task.draw("train")
    for example in examples:
        assert task.image(example.image_id).getpixel((0, 0)) == (156, 156, 156)
    assert len(examples) == 2
    assert [item.reason[:26] for item in bad] == ["picture of 32-bit numbers,"]


def test_what_follows_a_pictures_end_does_no_harm(tmp_path):
    """Motion photos of phones: a JPEG, and a video behind it."""
    for name in ("motion.jpg", "motion.png", "cut.jpg", "cut.png"):
        path = tmp_path / name
        Image.effect_noise((64, 64), 50).save(path)
        whole = path.read_bytes()
        is_cut = name.startswith("cut")
        path.write_bytes(whole[: len(whole) // 2] if is_cut else whole + b"\0video" * 100)
    rows = [{"file": name} for name in ("motion.jpg", "motion.png", "cut.jpg", "cut.png")]
    task = own_pictures(tmp_path, {"train": rows}, on_bad_item="skip")
    examples, bad = task.draw("train")
    assert [task.image(e.image_id).size for e in examples] == [(64, 64)] * 2
    assert [item.reason for item in bad] == ["damaged picture"] * 2


def test_a_download_that_is_filled_up_with_zeros_is_damaged(tmp_path):
    """As some programs leave it that reserve a file's whole size; a thumbnail is no picture."""
    noise, small = Image.effect_noise((64, 64), 50), io.BytesIO()
    noise.resize((16, 16)).save(small, "JPEG")
    exif = b"Exif\0\0" + small.getvalue()
    for name, fields in (("plain.jpg", {}), ("small.jpg", {"exif": exif}), ("plain.png", {})):
        noise.save(tmp_path / name, **fields)
        whole = (tmp_path / name).read_bytes()
        half = len(whole) * 3 // 4
        (tmp_path / name).write_bytes(whole[:half] + bytes(len(whole) - half))
    rows = [{"file": name} for name in ("good.png", "plain.jpg", "small.jpg", "plain.png")]
    task = own_pictures(tmp_path, {"train": rows}, on_bad_item="skip")
    examples, bad = task.draw("train")
    assert len(examples) == 1
    assert [item.reason for item in bad] == ["damaged picture"] * 3
