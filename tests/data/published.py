"""Small data sets in exactly the arrangements in which their authors publish them.

Their pictures and questions are easy-VQA's, so that the pocket models have something to say; what
is written to disk is what a download would have put there.
"""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ressa.data.easy_vqa import EasyVQA
from ressa.records import Example

EASY = EasyVQA()
OF_COCO = {"train2014": "train", "val2014": "validation"}


def by_picture(split: str, pictures: int, per_picture: int = 4) -> list[list[Example]]:
    """Returns questions of easy-VQA, a list for each of so many pictures."""
    groups = [list(group) for _, group in groupby(EASY.examples(split), key=lambda e: e.image_id)]
    return [group[:per_picture] for group in groups[:pictures]]


def caption(group: Sequence[Example]) -> str:
    """Says what is in a picture, in words that the pocket models know."""
    kinds = {example.kind: example.answer for example in group}
    return f"there is a {kinds.get('color', 'red')} {kinds.get('shape', 'circle')} in the image"


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def draw(path: Path, image_id: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    EASY.image(image_id).save(path, quality=95)


def vqav2(root: Path, *, pictures: int = 24, per_picture: int = 4, prefix: str = "v2_") -> Path:
    """Writes VQAv2 (or, with another prefix, OK-VQA): questions, annotations, COCO's pictures."""
    for split, own in OF_COCO.items():
        questions, annotations = [], []
        for number, group in enumerate(by_picture(own, pictures, per_picture), start=1):
            draw(root / split / f"COCO_{split}_{number:012d}.jpg", group[0].image_id)
            for index, example in enumerate(group):
                key = number * 1000 + index
                questions.append(
                    {"image_id": number, "question": example.question, "question_id": key}
                )
                ten = [example.answer] * 9 + ["something else"]
                annotations.append(
                    {
                        "question_type": "what",
                        "multiple_choice_answer": example.answer,
                        "answers": [
                            {"answer": answer, "answer_confidence": "yes", "answer_id": i}
                            for i, answer in enumerate(ten, start=1)
                        ],
                        "image_id": number,
                        "answer_type": "yes/no" if example.kind == "yes-no" else "other",
                        "question_id": key,
                    }
                )
        about = {
            "info": {"description": "drawn here", "url": "http://visualqa.org", "version": "2.0"},
            "license": {"name": "CC BY 4.0", "url": "http://creativecommons.org"},
            "data_subtype": split,
        }
        write(
            root / f"{prefix}OpenEnded_mscoco_{split}_questions.json",
            {**about, "task_type": "Open-Ended", "questions": questions},
        )
        write(
            root / f"{prefix}mscoco_{split}_annotations.json", {**about, "annotations": annotations}
        )
    return root


def gqa(root: Path, *, pictures: int = 12) -> Path:
    """Writes GQA's balanced questions and pictures."""
    for split, own in {"train_balanced": "train", "testdev_balanced": "validation"}.items():
        content = {}
        for number, group in enumerate(by_picture(own, pictures)):
            image = f"{2300000 + number}" if own == "train" else f"n{161313 + number}"
            draw(root / "images" / f"{image}.jpg", group[0].image_id)
            for index, example in enumerate(group):
                content[f"{number:05d}{index:03d}"] = {
                    "semantic": [],
                    "entailed": [],
                    "equivalent": [],
                    "question": example.question,
                    "imageId": image,
                    "isBalanced": True,
                    "groups": {"global": None, "local": None},
                    "answer": example.answer,
                    "semanticStr": "",
                    "annotations": {},
                    "types": {"detailed": "x", "semantic": "attr", "structural": "query"},
                    "fullAnswer": f"it is {example.answer}.",
                }
        write(root / f"{split}_questions.json", content)
    return root


def karpathy(root: Path, *, name: str = "coco", pictures: int = 24) -> Path:
    """Writes Karpathy and Fei-Fei's splits of COCO or Flickr30k."""
    images = []
    for split, own in {"train": "train", "val": "validation", "test": "test"}.items():
        for number, group in enumerate(by_picture(own, pictures, 12)):
            key = len(images) + 1
            folder = "train2014" if split == "train" else "val2014"
            image = 1000000 + key  # others' pictures of COCO have the first numbers
            file = f"COCO_{folder}_{image:012d}.jpg" if name == "coco" else f"{image}.jpg"
            place = folder if name == "coco" else "flickr30k-images"
            draw(root / place / file, group[0].image_id)
            texts = [f"{caption(group)}.", f"{caption(group)}, a {number}"]
            entry = {
                "filename": file,
                "imgid": key,
                "sentids": [2 * key, 2 * key + 1],
                "split": split,
                "sentences": [
                    {"tokens": text.split(), "raw": text, "imgid": key, "sentid": 2 * key + i}
                    for i, text in enumerate(texts)
                ],
            }
            images.append(entry | ({"filepath": folder, "cocoid": image} if name == "coco" else {}))
    write(root / f"dataset_{name}.json", {"images": images, "dataset": name})
    return root


def nocaps(root: Path, *, pictures: int = 12) -> Path:
    """Writes NoCaps' validation captions, in COCO's arrangement with a domain each."""
    images, annotations = [], []
    domains = ("in-domain", "near-domain", "out-domain")
    for number, group in enumerate(by_picture("validation", pictures, 12)):
        file = f"{number:016x}.jpg"
        draw(root / "val" / file, group[0].image_id)
        images.append(
            {
                "id": number,
                "file_name": file,
                "coco_url": f"https://example.org/{file}",
                "domain": domains[number % 3],
                "open_images_id": f"{number:016x}",
                "height": 64,
                "width": 64,
            }
        )
        annotations += [
            {"image_id": number, "id": 10 * number + i, "caption": caption(group)} for i in range(2)
        ]
    content = {"licenses": [], "info": {}, "images": images, "annotations": annotations}
    write(root / "nocaps_val_4500_captions.json", content)
    return root


def aokvqa(root: Path, *, pictures: int = 8) -> Path:
    """Writes A-OKVQA: questions with four choices, and COCO 2017's pictures."""
    for split, own in {"train": "train", "val": "validation"}.items():
        content = []
        for number, group in enumerate(by_picture(own, pictures), start=1):
            draw(root / f"{split}2017" / f"{number:012d}.jpg", group[0].image_id)
            for index, example in enumerate(group):
                others = [a for a in EASY.answers if a != example.answer][index : index + 3]
                content.append(
                    {
                        "split": split,
                        "image_id": number,
                        "question_id": f"{split}{number}x{index}",
                        "question": example.question,
                        "choices": [*others, example.answer],
                        "correct_choice_idx": 3,
                        "direct_answers": [example.answer] * 10,
                        "difficult_direct_answer": False,
                        "rationales": [],
                    }
                )
        write(root / f"aokvqa_v1p0_{split}.json", content)
    return root


def saved(root: Path, *, pictures: int = 12) -> Path:
    """Saves a Hugging Face data set to disk: questions, choices and captions of easy-VQA."""
    from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value

    features = Features(
        {
            "picture": Image(),
            "asked": Value("string"),
            "said": Sequence(Value("string")),
            "options": Sequence(Value("string")),
            "right": Value("int64"),
            "text": Value("string"),
        }
    )
    splits = {}
    for split, own in {"train": "train", "validation": "validation"}.items():
        rows: dict[str, list[Any]] = {name: [] for name in features}
        for group in by_picture(own, pictures, 1):
            example = group[0]
            rows["picture"].append(EASY.image(example.image_id))
            rows["asked"].append(example.question)
            rows["said"].append([example.answer] * 3)
            rows["options"].append([example.answer, "something"])
            rows["right"].append(0)
            rows["text"].append(caption(group))
        splits[split] = Dataset.from_dict(rows, features=features)
    DatasetDict(splits).save_to_disk(str(root))
    return root


def questions_on_one_picture(root: Path, *, pictures: int) -> Path:
    """Saves a Hugging Face data set whose every picture has two rows, of one split, and no id."""
    from datasets import DatasetDict, concatenate_datasets, load_from_disk

    rows = load_from_disk(str(saved(root.with_name("once"), pictures=pictures)))["validation"]
    DatasetDict({"validation": concatenate_datasets([rows, rows])}).save_to_disk(str(root))
    return root
