"""Small configurations of every model type: the default one, shrunk by the names of its fields.

Where that is not enough, `CORRECTIONS` says what else a type needs.
"""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCABULARY = 96
IMAGE = 32  # pixels
PATCH = 8

_SIZES: dict[str, int] = {
    **dict.fromkeys(
        (
            *("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "depth"),
            *("num_decoder_layers", "num_encoder_layers", "n_layers", "num_global_layers"),
            *("num_attention_heads", "num_heads", "encoder_attention_heads", "num_key_value_heads"),
            *("decoder_attention_heads", "attention_heads", "n_heads", "num_kv_heads"),
        ),
        2,
    ),
    **dict.fromkeys(
        (
            *("hidden_size", "d_model", "embed_dim", "width", "encoder_hidden_size", "out_dim"),
            *("vision_hidden_size", "text_hidden_size", "projection_dim", "out_hidden_size"),
            *("projector_hidden_size", "word_embed_proj_dim", "vision_embed_dim", "n_embd"),
            *("cross_attention_hidden_size", "embedding_dim", "projection_size", "output_dim"),
            *("moe_intermediate_size", "hidden_dim", "text_embed_dim", "vision_output_dim"),
            *("hidden_size_per_layer_input",),
        ),
        32,
    ),
    **dict.fromkeys(
        (
            *("intermediate_size", "ffn_dim", "d_ff", "mlp_dim", "encoder_ffn_dim"),
            *("decoder_ffn_dim", "projector_intermediate_size", "block_ff_dim"),
        ),
        64,
    ),
    "head_dim": 16,
    "d_kv": 16,
    "global_head_dim": 16,
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "image_size": IMAGE,
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "max_position_embeddings": 256,
    "num_query_tokens": 4,
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "sliding_window": 64,
}

_DROPPED = (
    "layer_types",
    "mlp_layer_types",
    "id2label",
    "label2id",
    "per_layer_config",
    "no_rope_layers",
    "moe_layers",
    "dtype",
    "architectures",
)

_OPT = {"model_type": "opt", "vocab_size": VOCABULARY, "hidden_size": 32, "ffn_dim": 64}
_OPT |= {"num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 32}
_OPT |= {"max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
_T5 = {"model_type": "t5", "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 64}
_T5 |= {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "pad_token_id": 0}
_T5 |= {"decoder_start_token_id": 0, "eos_token_id": 1, "feed_forward_proj": "gated-gelu"}
# Its matrices are `Conv1D`, with their weights transposed.
_GPT2 = {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2}
_GPT2 |= {"n_inner": 64, "n_positions": 256, "bos_token_id": 2, "eos_token_id": 1}
_LLAMA = {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 32, "pad_token_id": 0}
_LLAMA |= {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA |= {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 1}
_SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64}
_SIGLIP |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
_GEMMA4_VISION = {"model_type": "gemma4_vision", "hidden_size": 32, "intermediate_size": 64}
_GEMMA4_VISION |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
_GEMMA4_VISION |= {"head_dim": 16, "patch_size": 8, "pooling_kernel_size": 2}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_QFORMER = {"image_token_index": 4, "image_token_id": ..., "qformer_config.encoder_hidden_size": 32}
# One layer of either kind; without attention transformers' cache has no length.
_HYBRID = {"text_config.layer_types": ["linear_attention", "full_attention"]}
_INDEXED = {"text_config.layer_types": ["linear_attention", "indexed_attention"]}

_LISTS: dict[str, list[Any]] = {
    "mrope_section": [4, 2, 2],
    "global_attn_indexes": [1],
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1],
    "image_grid_pinpoints": [[IMAGE, IMAGE]],
}

CORRECTIONS: dict[str, dict[str, Any]] = {
    "blip-2": {"text_config": _OPT, **_QFORMER},
    "blip-2:t5": {"text_config": _T5},
    "blip-2:gpt2": {"text_config": _GPT2},
    "instructblip": {"text_config": _LLAMA, **_QFORMER},
    "instructblip:t5": {"text_config": _T5},
    "instructblipvideo": {"text_config": _LLAMA, **_QFORMER, "video_token_index": 4},
    "aria": {"projector_patch_to_query_dict": {"16": 4}},
    "qwen2_vl": {
        "text_config.rope_parameters": _MROPE,
        "vision_config.embed_dim": 32,
        "vision_config.hidden_size": 32,
    },
    "qwen2_5_vl": {"text_config.rope_parameters": _MROPE, "vision_config.out_hidden_size": 32},
    "florence2": {
        "vision_config.embed_dim": [16, 16, 16, 32],
        "vision_config.depths": [1, 1, 1, 1],
        "vision_config.num_heads": [2, 2, 2, 2],
        "vision_config.num_groups": [2, 2, 2, 2],
        "vision_config.window_size": 4,
        "vision_config.projection_dim": 32,
        "image_token_id": 4,
    },
    "janus": {
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1],
        "vq_config.num_res_blocks": 1,
        "vq_config.latent_channels": 32,
    },
    "vipllava": {"vision_feature_layer": [-1, -2]},
    "mllama": {
        "text_config.cross_attention_layers": [1],
        "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "vision_config.intermediate_layers_indices": [0, 1],
        "vision_config.vision_output_dim": 96,
        "vision_config.supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        "vision_config.max_num_tiles": 2,
        "image_token_index": 4,
    },
    "gemma3": {"mm_tokens_per_image": 4},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "t5gemma2": {"encoder.mm_tokens_per_image": 4},
    "chameleon": {"vocabulary_map": {"<image>": 4}, "vq_config.base_channels": 32},
    "emu3": {
        "vocabulary_map": {"<image>": 4, "<|extra_200|>": 5},
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1],
    },
    "cohere_compass": {
        "text_config.layer_types": ["full_attention", "full_attention"],
        "text_config.rope_parameters": {"full_attention": _MROPE},
    },
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse"],
        "text_config.num_experts_per_tok": 2,
        "vision_config.sam_config.downsample_channels": [32, 32],
    },
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 32,
        "vision_config.pooling_kernel_size": 2,
    },
    "dots3_note": {
        "vision_config.mlp_layer_types": ["dense", "sparse"],
        "vision_config.adapter_in_dim": 32,
        "vision_config.adapter_out_dim": 32,
        "audio_config.adapter_input_size": 32,
        "audio_config.adapter_out_dim": 32,
    },
    **{
        kind: {"text_config.rope_parameters": _MROPE}
        for kind in ("glm46v", "glm4v", "glm_ocr", "glmga")
    },
    "glm4v_moe": {"text_config.rope_parameters": {**_MROPE, "mrope_section": [1, 1, 2]}},
    "glm5_next": {**_INDEXED, "text_config.qk_rope_head_dim": 0},
    "hunyuan_vl": {
        "text_config.head_dim": 16,
        "text_config.rope_parameters": {**_MROPE, "mrope_section": [2, 2, 2, 2]},
        "vision_config.max_image_size": 64,
        "vision_config.temporal_patch_size": 1,
    },
    "qwen2_5_omni_thinker": {"vision_start_token_id": 9, "text_config.rope_parameters": _MROPE},
    "ernie4_5_vl_moe": {
        "text_config.rope_parameters": {**_MROPE, "mrope_section": [3, 3, 2]},
    },
    "kosmos-2.5": {"vision_config.patch_embed_hidden_size": 192},
    "kimi_k25": {"projection_hidden_size": 32},
    "paddleocr_vl": {"text_config.rope_parameters": _MROPE},
    "molmo2": {
        "adapter_config.vision_feature_layer": [1, 0],
        "image_patch_id": 4,
        "vision_config.image_size": [IMAGE, IMAGE],
        "vision_config.num_position_embeddings": 16,
    },
    "nemotron_h_omni": {"image_token_id": 4},
    **{
        kind: {**_HYBRID, "insert_layer_id": 0, "image_token_id": 4}
        for kind in ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7")
    },
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), _HYBRID),
    "qwen4_exp": {
        **_INDEXED,
        "text_config.indexer_n_heads": 2,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": 16,
        "text_config.indexer_budget": 64,
        "text_config.indexer_compress_ratio": 4,
    },
    "lfm3_vl": {"text_config.layer_types": ["conv", "full_attention"]},
    "mistral_large4": {"text_config.kv_source_layers": [0, 1]},
    "llama4": {
        "vision_config.intermediate_size": 128,
        "vision_config.projector_input_dim": 32,
        "vision_config.projector_output_dim": 32,
        "vision_config.vision_output_dim": 32,
    },
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 9},
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [0, 0, 1, 1],
        "downsample_rate": "1/2",
        "vision_config.hidden_size": 64,
    },
    "gemma3n": {
        "text_config.intermediate_size": [64, 64],
        "text_config.activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4": {"vision_config": _GEMMA4_VISION},
    "muse_glimmer": {"out_hidden_size": 128},
    "muse_spark": {
        "out_hidden_size": 128,
        "text_config.moe_hidden_size": 32,
        "audio_config.patch_sizes": [16, 6],
        "audio_config.hidden_sizes": [32, 32],
        "audio_config.depths": [1, 1],
    },
    "step3p7": {"text_config.sliding_window": 64},
    "unlimited_ocr": {"vision_config.sam_config.downsample_channels": [32, 32]},
}
"""By type: values of fields, by their path; `...` leaves a field out."""


VARIANTS = ("blip-2:t5", "blip-2:gpt2", "instructblip:t5")
"""Types with another language model, which runs in another way."""


def small_config(kind: str) -> PreTrainedConfig:
    """Builds a small configuration of a model type such as "llava" or "instructblip:t5"."""
    base = kind.split(":")[0]
    content = _shrunk(CONFIG_MAPPING[base]().to_dict())
    corrections = {**CORRECTIONS.get(base, {}), **CORRECTIONS.get(kind, {})}
    for path, value in corrections.items():
        *parents, last = path.split(".")
        inner = content
        for parent in parents:
            if not isinstance(inner.get(parent), dict):
                inner[parent] = {}
            inner = inner[parent]
        if value is ...:
            inner.pop(last, None)
        else:
            inner[last] = value
    content.pop("model_type", None)
    return CONFIG_MAPPING[base](**content)


def _shrunk(content: dict[str, Any]) -> dict[str, Any]:
    small = {}
    specials = iter(range(8, 64))
    for name, value in content.items():
        if not isinstance(name, str) or name in _DROPPED or (value is None and name in _SIZES):
            continue
        if isinstance(value, dict):
            value = _shrunk(value)
        elif name in _SIZES and isinstance(value, int) and not isinstance(value, bool):
            value = _SIZES[name]
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            value = _special(name, specials)
        elif name in _LISTS:
            value = _LISTS[name]
        small[name] = value
    return small


_KNOWN = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 0}


def _special(name: str, specials: Any) -> int:
    if name in _KNOWN:
        return _KNOWN[name]
    if name in ("image_token_id", "image_token_index", "im_token_id"):
        return 4
    return next(specials)
