"""Architectures of transformers, each from a small configuration, with inputs that its forward takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

TEXT = {"vocab_size": 99, "max_position_embeddings": 64, "pad_token_id": 0}
NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 36}
GROUPED = {**TEXT, **NARROW, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
SEQ2SEQ = {
    **TEXT, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 36, "decoder_ffn_dim": 36,
}  # fmt: skip
EXPERTS = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
IMAGE = {**NARROW, "image_size": 32, "patch_size": 8}
SOUND = {**NARROW, "conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 4), "vocab_size": 32,
         "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}  # fmt: skip


def words(**more: object) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(3, 17).reshape(2, 7), **more}


def pairs() -> dict[str, torch.Tensor]:
    return words(decoder_input_ids=torch.arange(5, 13).reshape(2, 4))


def pixels(size: int = 32) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * size * size).reshape(2, 3, size, size)}


def waves() -> dict[str, torch.Tensor]:
    return {"input_values": torch.linspace(-1, 1, 2 * 1200).reshape(2, 1200).sin()}


@dataclass(frozen=True)
class Architecture:
    model: str
    options: Mapping[str, object] = field(default_factory=dict)
    inputs: Callable[[], Mapping[str, Any]] = words
    parts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # configurations inside the configuration
    # Its constructor also fills a table of transformers that its forward reads: torch.load's model fails likewise.
    runs_without_constructor: bool = True

    def build(self) -> nn.Module:
        import transformers

        torch.manual_seed(0)
        cls = getattr(transformers, self.model)
        return cls(cls.config_class(**self.options, **{name: dict(part) for name, part in self.parts.items()}))


ARCHITECTURES = {
    each.model: each
    for each in [
        Architecture("AlbertForMaskedLM", {**TEXT, **NARROW, "embedding_size": 16}),
        Architecture("BartForConditionalGeneration", SEQ2SEQ, pairs),
        Architecture("BeitForImageClassification", IMAGE, pixels),
        Architecture("BertForSequenceClassification", {**TEXT, **NARROW}),
        Architecture("BigBirdForMaskedLM", {**TEXT, **NARROW, "attention_type": "original_full"}),
        Architecture("BloomForCausalLM", {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
        Architecture("CamembertForMaskedLM", {**TEXT, **NARROW}),
        Architecture(
            "CLIPModel",
            {"projection_dim": 16},
            lambda: words(**pixels()),
            {"text_config": {**TEXT, **NARROW, "eos_token_id": 16}, "vision_config": IMAGE},
        ),
        Architecture(
            "ConvNextForImageClassification", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, pixels
        ),
        Architecture("DebertaV2ForMaskedLM", {**TEXT, **NARROW, "pos_att_type": "p2c|c2p", "relative_attention": True}),
        Architecture("DeiTForImageClassification", IMAGE, pixels),
        Architecture("Dinov2ForImageClassification", IMAGE, pixels),
        Architecture("DistilBertForMaskedLM", {**TEXT, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37}),
        Architecture("ElectraForMaskedLM", {**TEXT, **NARROW, "embedding_size": 16}),
        Architecture("FalconForCausalLM", {**TEXT, **NARROW}),
        Architecture("GemmaForCausalLM", GROUPED),
        Architecture("Gemma2ForCausalLM", GROUPED),
        Architecture("GPT2LMHeadModel", {"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
        Architecture("GPTNeoXForCausalLM", {**TEXT, **NARROW}),
        Architecture(
            "GPTJForCausalLM",
            {"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
        ),
        Architecture("HubertModel", SOUND, waves),
        Architecture("LlamaForCausalLM", GROUPED),
        Architecture("LongformerForMaskedLM", {**TEXT, **NARROW, "attention_window": 4}),
        Architecture(
            "MambaForCausalLM", {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
        ),
        Architecture("MarianMTModel", {**SEQ2SEQ, "decoder_start_token_id": 0}, pairs),
        Architecture("MBartForConditionalGeneration", SEQ2SEQ, pairs),
        Architecture("MistralForCausalLM", GROUPED),
        Architecture("MixtralForCausalLM", EXPERTS),
        Architecture("MobileBertForMaskedLM", {**TEXT, **NARROW, "embedding_size": 16, "intra_bottleneck_size": 16}),
        Architecture(
            "MobileViTForImageClassification",
            {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 40], "image_size": 32},
            pixels,
        ),
        Architecture("MPNetForMaskedLM", {**TEXT, **NARROW}),
        Architecture(
            "OPTForCausalLM",
            {
                **TEXT,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "ffn_dim": 36,
                "word_embed_proj_dim": 32,
            },
        ),
        Architecture("PegasusForConditionalGeneration", SEQ2SEQ, pairs),
        Architecture("PhiForCausalLM", {**TEXT, **NARROW}),
        Architecture("Qwen2ForCausalLM", GROUPED),
        Architecture("Qwen3ForCausalLM", GROUPED),
        Architecture(
            "ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, pixels
        ),
        Architecture("RobertaForMaskedLM", {**TEXT, **NARROW}),
        Architecture("RoFormerForMaskedLM", {**TEXT, **NARROW}),
        Architecture(
            "SegformerForSemanticSegmentation",
            {
                "hidden_sizes": [8, 8, 16, 16],
                "depths": [1, 1, 1, 1],
                "num_attention_heads": [1, 1, 2, 2],
                "decoder_hidden_size": 16,
            },
            pixels,
            runs_without_constructor=False,
        ),
        Architecture("SqueezeBertForMaskedLM", {**TEXT, **NARROW, "embedding_size": 32}),
        Architecture(
            "SwinForImageClassification",
            {
                "image_size": 32,
                "patch_size": 4,
                "embed_dim": 8,
                "depths": [1, 1],
                "num_heads": [2, 2],
                "window_size": 4,
            },
            pixels,
        ),
        Architecture(
            "T5ForConditionalGeneration",
            {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4},
            pairs,
        ),
        Architecture("ViTForImageClassification", IMAGE, pixels),
        Architecture(
            "ViTMAEForPreTraining",
            {
                **IMAGE,
                "decoder_hidden_size": 16,
                "decoder_num_hidden_layers": 1,
                "decoder_num_attention_heads": 2,
                "decoder_intermediate_size": 16,
            },
            pixels,
        ),
        Architecture("Wav2Vec2ForCTC", SOUND, waves),
        Architecture(
            "WhisperForConditionalGeneration",
            {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16, "decoder_start_token_id": 1},
            lambda: {
                "input_features": torch.linspace(-1, 1, 2 * 8 * 32).reshape(2, 8, 32),
                "decoder_input_ids": torch.arange(5, 13).reshape(2, 4),
            },
        ),
        Architecture("XLMRobertaForMaskedLM", {**TEXT, **NARROW}),
        Architecture("XLNetLMHeadModel", {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 37}),
    ]
}
