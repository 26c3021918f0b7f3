"""The arrangements in which data sets are published, each as its authors offer it for download.

==============  ============================================================  =====================
format          annotations under `path`                                      pictures
==============  ============================================================  =====================
vqav2           v2_OpenEnded_mscoco_SPLIT_questions.json and                  COCO's folders
                v2_mscoco_SPLIT_annotations.json (visualqa.org)               train2014, val2014
okvqa           the same without v2_ (okvqa.allenai.org)                      COCO's folders
gqa             SPLIT_questions.json (cs.stanford.edu/people/dorarad/gqa)     images
aokvqa          aokvqa_v1p0_SPLIT.json (a-okvqa)                              COCO's train2017, …
karpathy        dataset_coco.json or dataset_flickr30k.json (Karpathy and     COCO's folders, or
                Fei-Fei's splits)                                             flickr30k-images
coco_captions   captions_SPLIT.json (cocodataset.org)                         COCO's folders
nocaps          nocaps_SPLIT_4500_captions.json (nocaps.org)                  images
==============  ============================================================  =====================

Files are looked for in `path` itself and in its folders annotations, questions and Annotations.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ressa.data.files import DataError, Layout, Picture, Record
from ressa.spec import DataSource

_FOLDERS = ("", "annotations", "questions", "Annotations", "Questions")


def layout_of(source: DataSource) -> Layout:
    """Returns the files of a data set in its arrangement.

    Raises:
        DataError: the folder is not there.
    """
    if source.format == "datasets":
        from ressa.data.hub import HuggingFace

        return HuggingFace(source)
    found: Layout = _LAYOUTS[source.format](source)
    return found


class _Folder:
    """Annotation files of one data set, and the pictures that they name."""

    picture_folders: tuple[str, ...] = ("", "images")
    """Where pictures are looked for under `path` when the sweep file does not say."""

    def __init__(self, source: DataSource) -> None:
        self.source, self.root = source, Path(os.path.expanduser(source.path))
        if not self.root.is_dir():
            raise DataError(f"there is no folder {source.path!r} for {source.format} data.")
        self._pictures: dict[str, str] = {}  # image id → file below a picture folder
        self._origin: dict[str, str] = {}
        own = Path(os.path.expanduser(source.images)) if source.images is not None else None
        self._roots = [self.root / name for name in self.picture_folders] if own is None else [own]

    def picture(self, image_id: str) -> Picture:
        """Returns the file of a picture, in the first folder that has it."""
        places = [root / self._pictures[image_id] for root in self._roots]
        return next((place for place in places if place.is_file()), places[0])

    def origin(self) -> dict[str, str]:
        """Says what the files that were read say of their source and licence."""
        return self._origin

    def _load(self, *names: str) -> Any:
        """Reads the JSON file of the first of these names that is there."""
        for name in names:
            for folder in _FOLDERS:
                path = self.root / folder / name
                if path.is_file():
                    return self._parse(path)
        raise DataError(
            f"{self.source.format} wants {' or '.join(names)} in {self.root} or its annotations "
            "folder. Download it there, or name another split in data.splits."
        )

    def _parse(self, path: Path) -> Any:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no JSON file that can be read ({error}).") from error
        if isinstance(content, dict):
            info, licence = content.get("info") or {}, content.get("license") or {}
            told = {"source": info.get("url") or info.get("description")}
            told["licence"] = licence.get("name") or licence.get("url")
            self._origin |= {key: text for key, text in told.items() if text}
        return content

    def _see(self, image_id: str, file: str) -> str:
        self._pictures[image_id] = file
        return image_id


def _coco_name(split: str, number: Any) -> tuple[str, str]:
    """COCO's name of a picture, and the file's place: what other data sets on COCO call it too."""
    name = f"COCO_{split}_{int(number):012d}"
    return name, f"{split}/{name}.jpg"


class _Coco(_Folder):
    picture_folders: tuple[str, ...] = ("", "images", "coco", "coco/images")


class OfficialVQA(_Coco):
    """VQAv2: questions and ten people's answers to each, in two files."""

    prefix = "v2_"

    def records(self, split: str) -> Iterator[Record]:
        """Yields a split's questions; without an annotation they come without answers."""
        questions = self._load(f"{self.prefix}OpenEnded_mscoco_{split}_questions.json")
        annotations = self._load(f"{self.prefix}mscoco_{split}_annotations.json")["annotations"]
        answered = {entry["question_id"]: entry for entry in annotations}
        for question in questions["questions"]:
            found = answered.get(question["question_id"], {})
            yield Record(
                id=str(question["question_id"]),
                image_id=self._see(*_coco_name(split, question["image_id"])),
                text=question["question"],
                answers=tuple(answer["answer"] for answer in found.get("answers", ())),
                kind=str(found.get("answer_type", "")),
            )


class OKVQA(OfficialVQA):
    """OK-VQA, in VQA's first arrangement."""

    prefix = ""


class GQA(_Folder):
    """GQA: one file a split, question id → question, picture and one answer."""

    picture_folders = ("images", "")

    def records(self, split: str) -> Iterator[Record]:
        """Yields a split's questions, such as testdev_balanced's."""
        for number, entry in self._load(f"{split}_questions.json").items():
            image = str(entry["imageId"])
            yield Record(
                id=str(number),
                image_id=self._see(f"gqa/{image}", f"{image}.jpg"),
                text=entry["question"],
                answers=(entry["answer"],) if entry.get("answer") else (),
                kind=str((entry.get("types") or {}).get("structural", "")),
            )


class AOKVQA(_Coco):
    """A-OKVQA: questions with four answers to choose from."""

    def records(self, split: str) -> Iterator[Record]:
        """Yields a split's questions."""
        for entry in self._load(f"aokvqa_v1p0_{split}.json"):
            number = f"{int(entry['image_id']):012d}"
            choices, right = tuple(entry["choices"]), entry.get("correct_choice_idx")
            yield Record(
                id=entry["question_id"],
                # COCO 2017 dealt the pictures of 2014 anew, under the same numbers.
                image_id=self._see(f"coco2017/{number}", f"{split}2017/{number}.jpg"),
                text=entry["question"],
                answers=() if right is None else (choices[right],),
                choices=choices,
            )


class Karpathy(_Coco):
    """Karpathy and Fei-Fei's splits of COCO or Flickr30k: one file, captions with each picture."""

    picture_folders = (*_Coco.picture_folders, "flickr30k-images", "flickr30k_images")

    def records(self, split: str) -> Iterator[Record]:
        """Yields the pictures of train, restval, val or test, with their captions."""
        content = self._load("dataset_coco.json", "dataset_flickr30k.json", "dataset.json")
        for entry in content["images"]:
            if entry["split"] != split:
                continue
            name = Path(entry["filename"]).stem
            is_coco = name.startswith("COCO_")
            yield Record(
                id=str(entry.get("cocoid", entry["imgid"])),
                image_id=self._see(
                    name if is_coco else f"{content.get('dataset', 'karpathy')}/{name}",
                    str(Path(entry.get("filepath", "")) / entry["filename"]),
                ),
                answers=tuple(sentence["raw"] for sentence in entry["sentences"]),
            )


class CocoCaptions(_Coco):
    """COCO's own captions, and NoCaps in the same arrangement: pictures and captions apart."""

    def records(self, split: str) -> Iterator[Record]:
        """Yields a split's pictures, with their captions."""
        content = self._annotations(split)
        captions: dict[Any, list[str]] = {}
        for caption in content["annotations"]:
            captions.setdefault(caption["image_id"], []).append(caption["caption"])
        for entry in content["images"]:
            name = Path(entry["file_name"]).stem
            folder = split if name.startswith("COCO_") else ""
            yield Record(
                id=str(entry["id"]),
                image_id=self._see(
                    name if folder else f"{self.source.format}/{name}",
                    str(Path(folder) / entry["file_name"]),
                ),
                answers=tuple(captions.get(entry["id"], ())),
                kind=str(entry.get("domain") or ""),
            )

    def _annotations(self, split: str) -> Any:
        return self._load(f"captions_{split}.json")


class NoCaps(CocoCaptions):
    """NoCaps: 4,500 pictures of Open Images; in-, near- and out-domain are their kinds."""

    picture_folders = ("", "images", "val")

    def _annotations(self, split: str) -> Any:
        return self._load(f"nocaps_{split}_4500_captions.json", f"nocaps_{split}.json")


_LAYOUTS: dict[str, Any] = {
    "vqav2": OfficialVQA,
    "okvqa": OKVQA,
    "gqa": GQA,
    "aokvqa": AOKVQA,
    "karpathy": Karpathy,
    "coco_captions": CocoCaptions,
    "nocaps": NoCaps,
}
