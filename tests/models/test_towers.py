import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, Blip2Config, Blip2ForConditionalGeneration
from transformers.modeling_utils import PreTrainedModel

from ressa.errors import SpecError
from ressa.models import find_towers
from ressa.models.pocket.build import build_blip2, build_llava

WORDS = ["red", "yes"]


@pytest.fixture(scope="module", params=[build_blip2, build_llava])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return request.param(WORDS)[0]


def small_blip2_with_opt() -> PreTrainedModel:
    """BLIP-2 with a decoder-only language model, as most of its checkpoints have."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "opt", "vocab_size": 20, "ffn_dim": 32, "word_embed_proj_dim": 16}
    config = Blip2Config(
        vision_config={**small, "intermediate_size": 32, "image_size": 16, "patch_size": 8},
        qformer_config={**small, "intermediate_size": 32, "encoder_hidden_size": 16},
        text_config={**small, **text, "max_position_embeddings": 32},
        num_query_tokens=2,
    )
    return Blip2ForConditionalGeneration(config)


def test_each_parameter_belongs_to_exactly_one_part(model: PreTrainedModel) -> None:
    towers = find_towers(model)
    names = [*towers.vision, *towers.connector, *towers.language]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert towers.inventory.whole == sum(p.numel() for p in model.parameters())


def test_what_can_be_pruned_is_each_linear_layer_in_a_block_once(model: PreTrainedModel) -> None:
    towers = find_towers(model)
    layers = towers.inventory.layers
    assert len({layer.name for layer in layers}) == len(layers)
    for layer in layers:
        module = model.get_submodule(layer.name)
        assert isinstance(module, nn.Linear)
        assert tuple(module.weight.shape) == (layer.rows, layer.columns)
        assert f"{layer.name}.weight" in towers.of(layer.tower)
    pruned = {layer.name for layer in layers}
    left = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)} - pruned
    in_towers = {n for n in left if f"{n}.weight" not in towers.connector}
    assert {name.rsplit(".")[-1] for name in in_towers} == {"lm_head"}


def test_the_pocket_models_have_the_layers_that_they_should() -> None:
    blip2 = find_towers(build_blip2(WORDS)[0])
    assert blip2.projector == "language_projection"
    assert (blip2.inventory.prunable("vision"), blip2.inventory.prunable("language")) == (
        *(147456, 196608),
    )
    # T5's two encoder blocks have 7 linear layers each; the decoder's have cross-attention too.
    blocks = [layer.block for layer in blip2.inventory.tower("language")]
    assert [blocks.count(block) for block in range(4)] == [7, 7, 11, 11]
    llava = find_towers(build_llava(WORDS)[0])
    assert llava.projector == "model.multi_modal_projector"
    assert (llava.inventory.prunable("vision"), llava.inventory.prunable("language")) == (
        *(147456, 81920),
    )


def test_a_decoder_only_blip2_is_taken_apart_too() -> None:
    model = small_blip2_with_opt()
    towers = find_towers(model)
    assert towers.projector == "language_projection"
    assert all("language_model" in name for name in towers.language)
    assert not any("language_model" in name for name in towers.connector)
    assert len(towers.inventory.tower("language")) == 6  # q, k, v, out, fc1, fc2


def test_a_model_without_a_picture_is_refused() -> None:
    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    with pytest.raises(SpecError, match="names no vision tower"):
        find_towers(bert)
