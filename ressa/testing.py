"""Contract classes: what the author of a plug-in inherits to test it with pytest.

class TestMine(PruneMethodContract):
    method = Mine
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ressa.catalog import CatalogModel
from ressa.errors import SpecError
from ressa.models import NO_LABEL, VLM, load_inventory, load_vlm
from ressa.prune import (
    LayerStatistics,
    PrunedLayers,
    PruneMethod,
    Statistics,
    count_zeros,
    prune_tower,
)
from ressa.records import Example
from ressa.sparsity import (
    TOWERS,
    Group,
    LayerShape,
    Target,
    tower_zeros,
    zeros_per_matrix,
    zeros_per_row,
)
from ressa.spec import Repair

_FEW = 20  # examples whose pictures are opened

_SHAPES = {"first": (12, 16), "second": (7, 24), "third": (16, 8)}  # all can be cut 2:4 and 4:8
_LAYERS = tuple(
    LayerShape(name=name, tower="language", block=block, rows=rows, columns=columns)
    for block, (name, (rows, columns)) in enumerate(_SHAPES.items())
)
_SPARSITIES = ["0", "0.01", "1/3", "0.5", "0.77", "1"]


class PruneMethodContract:
    """What holds for every pruning method."""

    method: ClassVar[type[PruneMethod]]

    def test_it_has_a_name_and_a_version(self) -> None:
        assert self.method.name
        assert self.method.version >= 1

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_saliency_is_finite_and_has_the_shape_of_the_weight(self, dtype: torch.dtype) -> None:
        method, known = self.method(), _statistics().layers
        for name, weight in _weights(_tower(dtype)).items():
            statistics = None if method.needs == "nothing" else known[name]
            saliency = method.saliency(weight, statistics, torch.Generator().manual_seed(0))
            assert saliency.shape == weight.shape
            assert saliency.isfinite().all()

    @pytest.mark.parametrize("sparsity", _SPARSITIES)
    def test_each_row_loses_exactly_its_count(self, sparsity: str) -> None:
        target = Target.parse(sparsity)
        masks = self._masks(target)
        counts = zeros_per_row(_LAYERS, target)
        for layer, zeros in zip(_LAYERS, counts, strict=True):
            assert (~masks[layer.name]).sum(dim=1).tolist() == zeros.tolist()

    @pytest.mark.parametrize("sparsity", _SPARSITIES)
    def test_each_matrix_loses_exactly_its_count(self, sparsity: str) -> None:
        target = Target.parse(sparsity)
        masks = self._masks(target, group="matrix")
        lost = [int((~masks[layer.name]).sum()) for layer in _LAYERS]
        assert lost == zeros_per_matrix(_LAYERS, target)

    @pytest.mark.parametrize("sparsity", _SPARSITIES)
    def test_a_tower_that_competes_as_a_whole_loses_exactly_its_count(self, sparsity: str) -> None:
        target = Target.parse(sparsity)
        masks = self._masks(target, group="tower")
        assert sum(int((~mask).sum()) for mask in masks.values()) == tower_zeros(_LAYERS, target)

    @pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "3:4"])
    def test_a_pattern_is_obeyed_in_each_aligned_group(self, pattern: str) -> None:
        kept, group = map(int, pattern.split(":"))
        for mask in self._masks(Target.parse(pattern)).values():
            assert (mask.reshape(-1, group).sum(dim=1) == kept).all()

    def test_sparsity_0_changes_nothing(self) -> None:
        tower = _tower()
        self._prune(Target.parse("0")).apply(tower)
        assert _equal(_weights(tower), _weights(_tower()))

    def test_sparsity_1_zeroes_everything(self) -> None:
        tower = _tower()
        self._prune(Target.parse("1")).apply(tower)
        assert all(not weight.any() for weight in _weights(tower).values())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_zeros_are_where_the_masks_say(self, dtype: torch.dtype) -> None:
        tower, target = _tower(dtype), Target.parse("0.6")
        pruned = self._prune(target, tower=tower)
        pruned.apply(tower)
        counts = count_zeros(tower, _LAYERS, pruned.masks)
        assert [count.violations for count in counts] == [0, 0, 0]
        assert sum(count.pruned for count in counts) == tower_zeros(_LAYERS, target)
        assert all(weight.isfinite().all() for weight in _weights(tower).values())
        assert all(weight.dtype == dtype for weight in _weights(tower).values())

    @pytest.mark.parametrize("target", ["0.5", "2:4"])
    def test_the_same_seed_gives_the_same_masks_and_weights(self, target: str) -> None:
        once, again = self._prune(Target.parse(target)), self._prune(Target.parse(target))
        assert _equal(once.masks, again.masks)
        assert _equal(once.weights, again.weights)

    @pytest.mark.parametrize("target", ["0.5", "2:4"])
    def test_what_was_pruned_comes_back_from_bytes(self, target: str) -> None:
        pruned = self._prune(Target.parse(target))
        restored = PrunedLayers.from_bytes(pruned.to_bytes())
        assert restored.layers == pruned.layers
        assert _equal(restored.masks, pruned.masks)
        assert _equal(restored.weights, pruned.weights)

    def test_masks_and_weights_do_not_depend_on_the_order_of_the_layers(self) -> None:
        # Half of every width here is whole, so that no remainder moves with the order.
        target, method, known = Target.parse("0.5"), self.method(), _statistics()
        pruned = prune_tower(
            _tower(), _LAYERS[::-1], method, target=target, statistics=known, seed=3
        )
        expected = self._prune(target)
        assert _equal(pruned.masks, expected.masks)
        assert _equal(pruned.weights, expected.weights)

    @pytest.mark.parametrize("target", ["0.5", "2:4"])
    def test_choosing_masks_leaves_the_weights_and_statistics_alone(self, target: str) -> None:
        tower, known = _tower(), _statistics()
        prune_tower(tower, _LAYERS, self.method(), target=Target.parse(target), statistics=known)
        assert _equal(_weights(tower), _weights(_tower()))
        assert known.to_bytes() == _statistics().to_bytes()

    def _prune(
        self, target: Target, group: Group = "row", tower: nn.Module | None = None
    ) -> PrunedLayers:
        return prune_tower(
            _tower() if tower is None else tower,
            _LAYERS,
            self.method(),
            target=target,
            group=group,
            statistics=_statistics(),
            seed=3,
        )

    def _masks(self, target: Target, group: Group = "row") -> Mapping[str, Tensor]:
        return self._prune(target, group).masks


class TaskContract:
    """What holds for every task that brings its own examples."""

    task: ClassVar[type[Any]]
    """Made without arguments."""

    @pytest.fixture
    def splits(self) -> dict[str, tuple[Example, ...]]:
        task = self.task()
        return {split: task.examples(split) for split in task.splits}

    def test_it_has_examples_to_calibrate_on_to_learn_from_and_to_score(
        self, splits: dict[str, tuple[Example, ...]]
    ) -> None:
        assert {"train", "calibration", "validation"} <= splits.keys()
        assert all(splits.values())

    def test_no_picture_is_in_two_splits(self, splits: dict[str, tuple[Example, ...]]) -> None:
        pictures = [{example.image_id for example in part} for part in splits.values()]
        assert len(set().union(*pictures)) == sum(map(len, pictures))

    def test_ids_are_unique_and_questions_about_a_picture_together(
        self, splits: dict[str, tuple[Example, ...]]
    ) -> None:
        for part in splits.values():
            assert len({example.id for example in part}) == len(part)
            runs = [picture for picture, _ in groupby(part, key=lambda e: e.image_id)]
            assert len(set(runs)) == len(runs)

    def test_a_draw_is_of_that_many_and_follows_from_its_seed(
        self, splits: dict[str, tuple[Example, ...]]
    ) -> None:
        task, again = self.task(), self.task()
        for split, part in splits.items():
            some = min(_FEW, len(part))
            drawn = task.examples(split, some, seed=3)
            assert len(drawn) == some
            assert drawn == again.examples(split, some, seed=3)
            assert set(drawn) <= set(part)
            assert part == again.examples(split)

    def test_more_examples_than_there_are_and_another_split_are_faults_of_the_file(
        self, splits: dict[str, tuple[Example, ...]]
    ) -> None:
        task = self.task()
        for split, part in splits.items():
            with pytest.raises(SpecError):
                task.examples(split, len(part) + 1)
        with pytest.raises(SpecError):
            task.examples("no such split")

    def test_every_answer_is_one_of_those_there_are(
        self, splits: dict[str, tuple[Example, ...]]
    ) -> None:
        known = set(self.task().answers)
        assert {example.answer for part in splits.values() for example in part} <= known

    def test_pictures_open_and_a_blank_one_is_there(
        self, splits: dict[str, tuple[Example, ...]]
    ) -> None:
        task = self.task()
        opened = [task.image(e.image_id) for part in splits.values() for e in part[:_FEW]]
        assert {picture.mode for picture in (*opened, task.blank_image())} == {"RGB"}


class ModelContract:
    """What holds for every model of the catalog that has its weights in its folder."""

    model: ClassVar[CatalogModel]

    @pytest.fixture
    def vlm(self) -> VLM:
        return load_vlm(str(self.model.folder))

    def test_its_list_of_layers_is_that_of_its_files(self) -> None:
        assert self.model.inventory() == load_inventory(str(self.model.folder))

    def test_every_layer_is_a_matrix_of_the_model_and_counts_once(self, vlm: VLM) -> None:
        layers = self.model.inventory().layers
        assert {layer.tower for layer in layers} == set(TOWERS)
        assert len({layer.name for layer in layers}) == len(layers)
        for layer in layers:
            shape = vlm.model.get_parameter(f"{layer.name}.weight").shape
            assert shape == (layer.rows, layer.columns), layer.name

    def test_what_it_suggests_for_repair_is_valid(self) -> None:
        Repair.model_validate(dict(self.model.repair_defaults))

    def test_answers_are_taught_and_given(self, vlm: VLM) -> None:
        picture = Image.new("RGB", (64, 64), "red")
        asked = [
            Example(id=answer, image_id="", question="what is this?", answer=answer, kind="")
            for answer in ("red", "blue")
        ]
        taught = vlm.encode(asked, lambda _: picture, answers=True)
        with torch.no_grad():
            logits, tokens = vlm.answer_logits(taught)
        assert taught.labels is not None
        assert tokens.equal(taught.labels[taught.labels != NO_LABEL])
        assert logits.isfinite().all()
        assert len(logits) == len(tokens)
        assert len(vlm.generate(vlm.encode(asked, lambda _: picture, answers=False), 3)) == 2


def _tower(dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    """A tower of three layers; always the same weights, some of them equal, some of them zero."""
    generator = torch.Generator().manual_seed(0)
    tower = nn.ModuleDict()
    for name, (rows, columns) in _SHAPES.items():
        linear = nn.Linear(columns, rows, bias=False)
        weight = torch.randn(rows, columns, generator=generator)
        weight[0] = weight[0].sign()
        weight[1, ::3] = 0
        linear.weight.data = weight
        tower[name] = linear
    tower.to(dtype)
    return tower


def _statistics() -> Statistics:
    """Statistics of the three layers on correlated inputs; the first input of each is dead."""
    generator = torch.Generator().manual_seed(1)
    layers = {}
    for name, (_, columns) in _SHAPES.items():
        mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
        inputs = torch.randn(20, columns, generator=generator, dtype=torch.float64) @ mixing + 0.5
        inputs[:, 0] = 0
        layers[name] = LayerStatistics(
            samples=5,
            tokens=20,
            sums=inputs.sum(dim=0),
            square_sums=inputs.square().sum(dim=0),
            gram=(inputs.T @ inputs).float(),
        )
    return Statistics(layers)


def _weights(tower: nn.Module) -> dict[str, Tensor]:
    return {name: tower.state_dict()[f"{name}.weight"] for name in _SHAPES}


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
