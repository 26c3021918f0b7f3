"""Every name that a sweep file may use, on one page: methods, tasks and models.

Names are known without importing what they stand for, so a sweep file is checked without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

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

TASKS: Registry[Any] = Registry(
    "task",
    group="ressa.tasks",
    builtins={"easy-vqa": "ressa.data.easy_vqa:EasyVQA"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """A model that can be named in a sweep file: where its files lie and how to repair it."""

    name: str
    folder: Path
    """What `save_pretrained` wrote, and the model's inventory.json."""
    summary: str
    repair_defaults: Mapping[str, Any] = field(hash=False)
    """Values of the sweep file's `repair` section that suit this model."""

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
                "Install ressa again, or write it anew with `make pocket`."
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

MODELS: Registry[CatalogModel] = Registry(
    "model",
    group="ressa.models",
    builtins={
        "pocket-blip2": "ressa.catalog:POCKET_BLIP2",
        "pocket-llava": "ressa.catalog:POCKET_LLAVA",
    },
)
