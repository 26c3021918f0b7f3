from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    FuyuConfig,
    InstructBlipConfig,
    Qwen3VLMoeConfig,
    T5Config,
)
from transformers.modeling_utils import PreTrainedModel

from ressa.catalog import MODELS
from ressa.errors import SpecError
from ressa.models import find_towers
from ressa.models.opened import closed, open_matrices
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


def mixture(device: str = "cpu") -> Any:
    """Qwen3-VL with four experts a layer, two of which read each token."""
    small = {"num_attention_heads": 2, "hidden_size": 32}
    config = Qwen3VLMoeConfig(
        text_config={
            **small,
            "vocab_size": 20,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "moe_intermediate_size": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 2, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32},
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, experts_implementation="eager")
    return model.eval()


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


@pytest.mark.parametrize(
    ("name", "language_billions", "language_blocks", "language_layers"),
    [
        # 24 blocks of 7 layers in T5's encoder, 24 of 11 in its decoder; 32 of 7 in Vicuna.
        ("Salesforce/instructblip-flan-t5-xl", 2.718, 48, 24 * 7 + 24 * 11),
        ("Salesforce/blip2-flan-t5-xl", 2.718, 48, 24 * 7 + 24 * 11),
        ("Salesforce/instructblip-vicuna-7b", 6.476, 32, 32 * 7),
    ],
)
def test_the_papers_models_have_as_many_prunable_weights_as_counted_from_the_papers_code(
    name: str, language_billions: float, language_blocks: int, language_layers: int
) -> None:
    inventory = MODELS[name].inventory()
    assert round(inventory.prunable("vision") / 1e9, 3) == 0.984  # EVA-CLIP-g's 39 blocks
    assert round(inventory.prunable("language") / 1e9, 3) == language_billions
    assert len({layer.block for layer in inventory.tower("vision")}) == 39
    assert len({layer.block for layer in inventory.tower("language")}) == language_blocks
    assert len(inventory.tower("language")) == language_layers


def test_towers_of_the_papers_dimensions_are_found_as_the_package_lists_them() -> None:
    # InstructBlipConfig's own vision tower and Q-Former are the paper's; FLAN-T5-XL as published.
    t5 = T5Config(
        vocab_size=32128,
        d_model=2048,
        d_ff=5120,
        num_layers=24,
        num_heads=32,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    config = InstructBlipConfig(text_config=t5.to_dict())
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    found, listed = find_towers(model), MODELS["Salesforce/instructblip-flan-t5-xl"].inventory()
    assert found.inventory.layers == listed.layers
    stacks = {name.rsplit(".", 2)[0] for name in found.blocks["language"]}
    assert stacks == {"language_model.encoder", "language_model.decoder"}


def test_a_decoder_only_blip2_is_taken_apart_too() -> None:
    model = small_blip2_with_opt()
    towers = find_towers(model)
    assert towers.projector == "language_projection"
    assert all("language_model" in name for name in towers.language)
    assert not any("language_model" in name for name in towers.connector)
    assert len(towers.inventory.tower("language")) == 6  # q, k, v, out, fc1, fc2


def test_a_module_that_nobody_claims_is_refused_until_the_spec_says_what_it_is() -> None:
    model = small_blip2_with_opt()
    model.add_module("gadget", nn.Linear(3, 4))
    with pytest.raises(SpecError, match=r"what gadget \(16 parameters\) belongs to is not known"):
        find_towers(model)
    towers = find_towers(model, {"other": ["gadget"]})
    assert towers.other == ("gadget.weight", "gadget.bias")
    assert towers.inventory.parameters["other"] == 16
    with pytest.raises(SpecError, match="has no module 'gizmo'"):
        find_towers(model, {"other": ["gizmo"]})


def test_a_given_tower_is_taken_instead_of_the_one_that_is_found() -> None:
    model = small_blip2_with_opt()
    towers = find_towers(model, {"vision": ["qformer"], "other": ["vision_model"]})
    assert {layer.name.split(".")[0] for layer in towers.inventory.tower("vision")} == {"qformer"}
    assert set(towers.connector) == {
        *("query_tokens", "language_projection.weight", "language_projection.bias"),
    }


def test_tied_weights_are_counted_once() -> None:
    model: Any = small_blip2_with_opt()
    layer = model.language_model.model.decoder.layers[0].self_attn
    before = find_towers(model).inventory
    layer.k_proj.weight = layer.q_proj.weight
    after = find_towers(model).inventory
    assert before.prunable("language") - after.prunable("language") == layer.q_proj.weight.numel()
    assert sum(after.parameters.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("build", [lambda: BertModel(BertConfig()), None])
def test_a_model_without_a_vision_tower_is_refused_by_name(build: Any) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(FuyuConfig()) if build is None else build()
    with pytest.raises(SpecError, match=r"(BertModel|FuyuForCausalLM): there is no vision tower"):
        find_towers(model)


def test_experts_are_matrices_of_their_own_and_compute_what_the_mixture_does() -> None:
    model = mixture()
    ids = torch.randint(3, 20, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fused = model(input_ids=ids).logits
        towers = find_towers(model)
        assert torch.allclose(model(input_ids=ids).logits, fused, atol=1e-5)
    experts = [x for x in towers.inventory.tower("language") if ".experts." in x.name]
    assert [(x.rows, x.columns) for x in experts] == [*[(48, 32)] * 4, *[(32, 24)] * 4] * 2
    assert find_towers(mixture("meta")).inventory == towers.inventory


def test_experts_without_a_token_are_left_out_unless_gradients_or_listeners_want_all() -> None:
    model = mixture()
    open_matrices(model)
    experts = model.model.language_model.layers[1].mlp.experts
    ids = torch.tensor([[5]])
    called = []
    for index, layer in enumerate(experts.down_proj):
        layer.register_forward_hook(lambda *_, index=index: called.append(index))

    def run() -> tuple[torch.Tensor, list[int]]:
        called.clear()
        return model(input_ids=ids).logits, [*called]

    with_all, everyone = run()
    assert everyone == [0, 1, 2, 3]
    with torch.no_grad():
        logits, chosen = run()
        assert len(chosen) == 2
        assert logits.equal(with_all)
        experts.down_proj[0].register_forward_pre_hook(lambda *_: None)
        logits, everyone = run()
    assert everyone == [0, 1, 2, 3]
    assert logits.equal(with_all)


def test_closing_a_mixture_keeps_what_was_done_to_its_experts() -> None:
    model, plain = mixture(), mixture()
    open_matrices(model)
    experts = model.model.language_model.layers[1].mlp.experts
    with torch.no_grad():
        experts.down_proj[2].weight.zero_()
    with closed(model):
        assert model.state_dict().keys() == plain.state_dict().keys()
        weights = model.state_dict()
        name = "model.language_model.layers.1.mlp.experts.down_proj"
        assert not weights[name][2].any()
        assert weights[name][[0, 1, 3]].equal(plain.state_dict()[name][[0, 1, 3]])
    assert isinstance(experts.down_proj, nn.ModuleList)
