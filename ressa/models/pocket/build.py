"""The pocket models before training: genuine transformers classes, small enough for a CPU."""

from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

IMAGE_SIZE = 64
PATCH_SIZE = 8
WIDTH = 64
_QUERIES = 4
# The default of 0.02 is meant for widths of about 1,000; at 64 the first blocks would add next to
# nothing to their input, and training would start slowly.
_INITIAL_SPREAD = 0.1
_PIXELS: dict[str, Any] = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
}

# What a user asks becomes the prompt as it is; LLaVA's decoder sees the picture first.
_BLIP2_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
_LLAVA_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def build_blip2(words: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Builds an untrained BLIP-2: ViT, Q-Former with 4 queries, T5 of 2 + 2 layers."""
    tokenizer = _tokenizer(words, template=_BLIP2_TEMPLATE, decoder_only=False)
    token = tokenizer.get_vocab()
    config = Blip2Config(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "initializer_range": _INITIAL_SPREAD,
        },
        qformer_config={
            "vocab_size": 2,  # text never enters the Q-Former of BLIP-2's generating model
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "cross_attention_frequency": 1,
            "encoder_hidden_size": WIDTH,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": _INITIAL_SPREAD,
        },
        text_config={
            "model_type": "t5",
            "vocab_size": len(tokenizer),
            "d_model": WIDTH,
            "d_kv": WIDTH // 4,
            "d_ff": 2 * WIDTH,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.0,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "pad_token_id": token["<pad>"],
            "eos_token_id": token["</s>"],
            "decoder_start_token_id": token["<pad>"],
        },
        num_query_tokens=_QUERIES,
        image_token_index=token["<image>"],
    )
    model = Blip2ForConditionalGeneration(config)
    # Transformers starts the queries at zero, where they are alike and would stay so.
    model.query_tokens.data.normal_()
    pixels = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, **_PIXELS)
    return model, Blip2Processor(pixels, tokenizer, num_query_tokens=_QUERIES)


def build_llava(words: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Builds an untrained LLaVA: CLIP's vision tower, a two-layer projector, a Llama of 2 layers.

    The decoder sees the class token beside the patches ("full"), all from the last layer.
    """
    tokenizer = _tokenizer(words, template=_LLAVA_TEMPLATE, decoder_only=True)
    token = tokenizer.get_vocab()
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "projection_dim": WIDTH,
            "initializer_range": _INITIAL_SPREAD,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "initializer_range": _INITIAL_SPREAD,
            "pad_token_id": token["<pad>"],
            "bos_token_id": token["<s>"],
            "eos_token_id": token["</s>"],
        },
        image_token_index=token["<image>"],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_center_crop=False, **_PIXELS
        ),
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,  # the class token
        chat_template=_LLAVA_TEMPLATE,
    )
    return model, processor


def _tokenizer(words: list[str], *, template: str, decoder_only: bool) -> PreTrainedTokenizerFast:
    """Makes a tokenizer of whole words: lower case, split at spaces and punctuation."""
    special = ["<pad>", "</s>", "<unk>", "<s>", "<image>"]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # T5's encoder ends its text with </s>; Llama's decoder begins with <s> and ends by answering.
    end, start = ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A" if decoder_only else "$A </s>", special_tokens=[start, end]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>" if decoder_only else None,
        # Blip2Processor wants `tokenizer.image_token` to be absent or an AddedToken, LlavaProcessor
        # a string; a plain list gives the former, a named token the latter.
        extra_special_tokens={"image_token": "<image>"} if decoder_only else ["<image>"],
        padding_side="left" if decoder_only else "right",
        model_max_length=256,
        chat_template=template,
    )
