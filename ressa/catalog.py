"""Every name that a sweep file may use, on one page: methods, tasks and models.

Names are known without importing what they stand for, so a sweep file is checked without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from ressa.errors import SpecError
from ressa.registry import Registry
from ressa.sparsity import Inventory

METHODS: Registry[Any] = Registry(
    "prune method",
    group="ressa.methods",
    builtins={
        "random": "ressa.prune.random:Random",
        "magnitude": "ressa.prune.magnitude:Magnitude",
        "wanda": "ressa.prune.wanda:Wanda",
        "sparsegpt": "ressa.prune.sparsegpt:SparseGPT",
        "dsnot": "ressa.prune.dsnot:DSnoT",
    },
)

Need: TypeAlias = Literal["nothing", "moments", "gram"]
"""Which statistics a method reads: none, sums of its inputs and their squares, or XᵀX as well."""

NEEDS: Mapping[str, Need] = {
    "random": "nothing",
    "magnitude": "nothing",
    "wanda": "moments",
    "sparsegpt": "gram",
    "dsnot": "moments",
}
"""What the methods here read, known without importing them."""

TASKS: Registry[Any] = Registry(
    "task",
    group="ressa.tasks",
    builtins={
        "easy-vqa": "ressa.data.easy_vqa:EasyVQA",
        "vqa": "ressa.data.vqa:VQA",
        "captioning": "ressa.data.captioning:Captioning",
        "retrieval": "ressa.data.retrieval:Retrieval",
        "multiple_choice": "ressa.data.multiple_choice:MultipleChoice",
        "perplexity": "ressa.data.perplexity:Perplexity",
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What a sweep file may say of a task, known without importing it."""

    metrics: tuple[str, ...]
    """What an objective may name: of these more is better."""
    main: tuple[str, ...]
    """What stands for the task in a mean over tasks."""
    formats: tuple[str, ...] = ()
    """Layouts of its files that it reads; none: its examples come with a package."""
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Values of its entry in the sweep file's `data` section."""


_CLOSED = TaskFacts(metrics=("exact_match", "balanced_accuracy"), main=("balanced_accuracy",))

# Prompts and decoding are those of the paper's code (docs/tasks.md says where they differ).
_FACTS: Mapping[str, TaskFacts] = {
    "vqa": TaskFacts(
        metrics=("accuracy", "exact_match"),
        main=("accuracy",),
        formats=("vqav2", "okvqa", "gqa", "datasets"),
        defaults={
            "prompt": "Question: {} Short answer:",
            "decoding": {
                "beams": 5,
                "max_new_tokens": 10,
                "min_new_tokens": 1,
                "length_penalty": -1.0,
            },
        },
    ),
    "captioning": TaskFacts(
        metrics=("cider", "bleu4"),
        main=("cider",),
        formats=("karpathy", "coco_captions", "nocaps", "datasets"),
        defaults={
            "prompt": "A short image caption.",
            "decoding": {
                "beams": 5,
                "max_new_tokens": 30,
                "min_new_tokens": 8,
                "repetition_penalty": 1.5,
            },
        },
    ),
    "retrieval": TaskFacts(
        metrics=("tr1", "tr5", "tr10", "ir1", "ir5", "ir10"),
        main=("tr1", "ir1"),
        formats=("karpathy", "datasets"),
    ),
    "multiple_choice": TaskFacts(
        metrics=("accuracy", "accuracy_per_token"),
        main=("accuracy",),
        formats=("aokvqa", "datasets"),
        defaults={"prompt": "Question: {} Short answer:"},
    ),
    "perplexity": TaskFacts(
        metrics=("likelihood",),
        main=("likelihood",),
        formats=("karpathy", "coco_captions", "nocaps", "datasets"),
        defaults={"prompt": "", "clean_text": False},
    ),
}

_OF_COCO = {"train": "train2014[5%:]", "calibration": "train2014[:5%]", "validation": "val2014"}
FORMATS: Mapping[str, Mapping[str, str]] = {
    "vqav2": _OF_COCO,
    "okvqa": _OF_COCO,
    "gqa": {
        "train": "train_balanced[5%:]",
        "calibration": "train_balanced[:5%]",
        "validation": "testdev_balanced",
    },
    "aokvqa": {"train": "train[5%:]", "calibration": "train[:5%]", "validation": "val"},
    "karpathy": {
        "train": "train[5%:]",
        "calibration": "train[:5%]",
        "validation": "val",
        "test": "test",
    },
    "coco_captions": _OF_COCO,
    "nocaps": {"validation": "val"},
    "datasets": {
        "train": "train[5%:]",
        "calibration": "train[:5%]",
        "validation": "validation",
        "test": "test",
    },
}
"""Layouts of files, and which of their splits serve as ours unless a sweep file says otherwise."""


def task_facts(task: str) -> TaskFacts:
    """Returns what is known of a task; one of a plug-in is scored as easy-VQA is."""
    return _FACTS.get(task, _CLOSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """A model that can be named in a sweep file: where its files lie and how to repair it."""

    name: str
    folder: Path
    """What `save_pretrained` wrote, and the model's inventory.json; of a hub model that alone."""
    summary: str
    repair_defaults: Mapping[str, Any] = field(hash=False)
    """Values of the sweep file's `repair` section that suit this model."""
    is_on_hub: bool = False
    """Whether the weights are on the hub, under the model's name."""

    def inventory(self) -> Inventory:
        """Reads which layers the model has, without loading it.

        Raises:
            SpecError: the file is missing or broken; the installation is at fault.
        """
        path = self.folder / "inventory.json"
        try:
            return Inventory.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SpecError(
                f"the list of layers of model {self.name!r} cannot be read from {path} ({error}). "
                "Install ressa again."
            ) from error


_POCKET = Path(__file__).parent / "models" / "pocket"
_POCKET_REPAIR: Mapping[str, Any] = MappingProxyType(
    {
        "rank": {"vision": 8, "language": 8, "connector": 2},
        "steps": 100,
        "batch_size": 128,
        "learning_rate": 5e-3,
        "schedule": "cosine",
        "warmup_steps": 10,
        "clip": 1.0,
    }
)

POCKET_BLIP2 = CatalogModel(
    name="pocket-blip2",
    folder=_POCKET / "pocket-blip2",
    summary="ViT, Q-Former and T5, trained on easy-VQA; 0.5 M parameters. The paper's family.",
    repair_defaults=_POCKET_REPAIR,
)
POCKET_LLAVA = CatalogModel(
    name="pocket-llava",
    folder=_POCKET / "pocket-llava",
    summary="ViT, projector and Llama decoder, trained on easy-VQA; 0.3 M parameters.",
    repair_defaults=_POCKET_REPAIR,
)


def _on_hub(folder: str, summary: str) -> CatalogModel:
    """A model of the paper's: its layers are known here, its weights are on the hub."""
    return CatalogModel(
        name=f"Salesforce/{folder}",
        folder=_HUB / folder,
        summary=summary,
        repair_defaults=MappingProxyType({}),
        is_on_hub=True,
    )


_HUB = Path(__file__).parent / "models" / "hub"
INSTRUCTBLIP_FLAN_T5_XL = _on_hub("instructblip-flan-t5-xl", "The paper's first model.")
INSTRUCTBLIP_FLAN_T5_XXL = _on_hub("instructblip-flan-t5-xxl", "Its larger sister.")
INSTRUCTBLIP_VICUNA_7B = _on_hub("instructblip-vicuna-7b", "The paper's second model.")
INSTRUCTBLIP_VICUNA_13B = _on_hub("instructblip-vicuna-13b", "Its larger sister.")
BLIP2_FLAN_T5_XL = _on_hub("blip2-flan-t5-xl", "BLIP-2 on the paper's first language model.")
BLIP2_OPT_2_7B = _on_hub("blip2-opt-2.7b", "BLIP-2 on OPT.")

MODELS: Registry[CatalogModel] = Registry(
    "model",
    group="ressa.models",
    builtins={
        "pocket-blip2": "ressa.catalog:POCKET_BLIP2",
        "pocket-llava": "ressa.catalog:POCKET_LLAVA",
        "Salesforce/instructblip-flan-t5-xl": "ressa.catalog:INSTRUCTBLIP_FLAN_T5_XL",
        "Salesforce/instructblip-flan-t5-xxl": "ressa.catalog:INSTRUCTBLIP_FLAN_T5_XXL",
        "Salesforce/instructblip-vicuna-7b": "ressa.catalog:INSTRUCTBLIP_VICUNA_7B",
        "Salesforce/instructblip-vicuna-13b": "ressa.catalog:INSTRUCTBLIP_VICUNA_13B",
        "Salesforce/blip2-flan-t5-xl": "ressa.catalog:BLIP2_FLAN_T5_XL",
        "Salesforce/blip2-opt-2.7b": "ressa.catalog:BLIP2_OPT_2_7B",
    },
)
