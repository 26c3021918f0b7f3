"""Forward passes that stop at each block are the model's own, whatever it does between blocks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaModel,
    Qwen3VLConfig,
    Qwen3VLModel,
    Swinv2Config,
    Swinv2Model,
    T5Config,
    T5Model,
)

from ressa.prune.passes import Pass, stopping_before

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 40}
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 0, 0, 0]])
MASK = (TOKENS != 0).long()


def llama() -> tuple[nn.Module, list[nn.Module], dict[str, Any]]:
    """Rotary positions and a causal mask are made outside the blocks."""
    model = LlamaModel(LlamaConfig(**SMALL, num_hidden_layers=3))
    return model, [*model.layers], {"input_ids": TOKENS, "attention_mask": MASK, "use_cache": False}


def gemma() -> tuple[nn.Module, list[nn.Module], dict[str, Any]]:
    """Blocks take turns with two masks and two kinds of rotary positions."""
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(
        **SMALL,
        num_hidden_layers=4,
        layer_types=kinds,
        sliding_window=3,
        head_dim=8,
        num_key_value_heads=2,
    )
    model = Gemma3TextModel(config)
    return model, [*model.layers], {"input_ids": TOKENS, "attention_mask": MASK, "use_cache": False}


def t5() -> tuple[nn.Module, list[nn.Module], dict[str, Any]]:
    """A stack's first block makes the position bias of all; cross-attention reads the encoder."""
    model = T5Model(T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, vocab_size=40))
    blocks = [*model.encoder.block, *model.decoder.block]
    return (
        model,
        blocks,
        {
            "input_ids": TOKENS,
            "attention_mask": MASK,
            "use_cache": False,
            "decoder_input_ids": TOKENS,
        },
    )


def swin() -> tuple[nn.Module, list[nn.Module], dict[str, Any]]:
    """Between its stages the picture shrinks."""
    config = Swinv2Config(
        image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    model = Swinv2Model(config)
    blocks = [block for stage in model.encoder.layers for block in stage.blocks]
    return model, blocks, {"pixel_values": torch.randn(2, 3, 32, 32)}


def qwen() -> tuple[nn.Module, list[nn.Module], dict[str, Any]]:
    """What vision blocks put out is added between the language model's blocks (deep stack)."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "depth": 3}
    vision |= {"out_hidden_size": 16, "patch_size": 4, "spatial_merge_size": 1}
    vision |= {"temporal_patch_size": 1, "deepstack_visual_indexes": [0, 1]}
    vision |= {"num_position_embeddings": 16}
    text = SMALL | {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 8}
    text |= {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
    config = Qwen3VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=30,
        vision_start_token_id=31,
        vision_end_token_id=32,
    )
    model = Qwen3VLModel(config)
    ids = torch.tensor([[31, 30, 30, 30, 30, 32, 5, 6]])
    return (
        model,
        [*model.visual.blocks, *model.language_model.layers],
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "use_cache": False,
            "mm_token_type_ids": (ids == 30).long(),
            "pixel_values": torch.randn(4, 3 * 16),
            "image_grid_thw": torch.tensor([[1, 2, 2]]),
        },
    )


def outputs_of(blocks: list[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """What each block puts out, in the order in which they run."""
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda module, args, output: seen.append(
                output if isinstance(output, Tensor) else output[0]
            )
        )
        for block in blocks
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("build", [llama, gemma, t5, swin, qwen])
def test_passes_that_stop_at_each_block_reproduce_the_hidden_states(build):
    torch.manual_seed(0)
    model, blocks, inputs = build()
    model.eval()
    expected = outputs_of(blocks, lambda: model(**inputs))
    assert len(expected) == len(blocks)

    def all_together() -> None:
        # Three passes side by side, each block run twice, the first output thrown away.
        passes = [Pass(lambda: model(**inputs)) for _ in range(3)]
        for each in passes:
            each.go_on()
        while passes[0].block is not None:
            for keep in (False, True):
                for each in passes:
                    each.run_block(keep=keep)
            for each in passes:
                each.go_on()
        assert all(each.dead for each in passes)

    with stopping_before(blocks, CPU):
        seen = outputs_of(blocks, all_together)
    assert len(seen) == 3 * len(expected)
    for index, states in enumerate(expected):
        assert all(states.equal(other) for other in seen[3 * index : 3 * index + 3])


def test_a_model_is_left_as_it_was():
    model, blocks, inputs = llama()
    blocks[1].forward = original = blocks[1].forward
    with torch.no_grad(), stopping_before(blocks, CPU):
        model(**inputs)  # not a pass: it does not stop
        left = Pass(lambda: model(**inputs))
        left.go_on()
        assert left.block == 0
        left.end()
        assert left.dead
    assert vars(blocks[1])["forward"] is original
    assert "forward" not in vars(blocks[0])


def test_an_error_inside_a_pass_comes_out_where_it_is_driven():
    model, blocks, inputs = llama()
    blocks[1].self_attn.q_proj = nn.Linear(3, 3)
    with torch.no_grad(), stopping_before(blocks, CPU):
        each = Pass(lambda: model(**inputs))
        each.go_on()
        each.run_block(keep=True)
        each.go_on()
        with pytest.raises(RuntimeError, match="shapes"):
            each.run_block(keep=True)
        assert each.dead
