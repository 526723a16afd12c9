"""Networks of Hugging Face's transformers, from tiny configurations."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from tests.helpers.vision.zoo.architecture import Architecture, on_images

_STAGES: dict[str, Any] = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
_SPEECH: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "apply_spec_augment": False,
}  # fmt: skip
_WAVE = ((2, 400),)
NETWORKS: dict[str, tuple[dict[str, Any], tuple[tuple[int, ...], ...]]] = {
    "ResNet": ({"embedding_size": 8, **_STAGES, "layer_type": "basic"}, on_images()),
    "RegNet": ({"embedding_size": 8, **_STAGES, "groups_width": 8}, on_images()),
    "Bit": ({"embedding_size": 8, **_STAGES, "num_groups": 4}, on_images()),
    "MobileNetV1": ({"depth_multiplier": 0.25, "min_depth": 4}, on_images()),
    "MobileNetV2": ({"depth_multiplier": 0.25}, on_images()),
    "EfficientNet": ({"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320}, on_images()),
    "ConvNext": (_STAGES, on_images()),
    "ConvNextV2": (_STAGES, on_images()),
    "PoolFormer": (_STAGES, on_images()),
    "Segformer": (
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2],
         "decoder_hidden_size": 16},
        on_images(),
    ),
    "MobileViT": (
        {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 16, 16, 16], "intermediate_size": 32},
        on_images(),
    ),
    "MobileViTV2": ({"width_multiplier": 0.25}, on_images()),
    "Levit": (
        {"image_size": 64, "hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
         "key_dim": [4, 4, 4]},
        on_images(),
    ),
    "Cvt": (
        {"embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "depth": [1, 2, 3], "drop_path_rate": [0.0, 0.0, 0.0]},
        on_images(),
    ),
    "SwiftFormer": ({"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]}, on_images()),
    "HGNetV2": ({}, on_images()),
    "TextNet": ({}, on_images()),
    "Wav2Vec2": (_SPEECH, _WAVE),
    "Hubert": (_SPEECH, _WAVE),
    "DPT": ({}, on_images()),
}  # fmt: skip
_SMALL_DPT = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 64,
    "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8,
    "use_batch_norm_in_fusion_residual": True,
}  # fmt: skip
_TEXTNET = {"hidden_sizes": [8, 8, 16, 16, 16], "stem_num_channels": 3, "stem_out_channels": 8}
_HGNET = {
    "stem_channels": [3, 8, 8], "stage_in_channels": [8, 8, 16, 16], "stage_mid_channels": [4, 4, 8, 8],
    "stage_out_channels": [8, 16, 16, 16], "stage_num_blocks": [1, 1, 1, 1], "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 16],
}  # fmt: skip
_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet": ("ResNetModel", {}),
    "HGNetV2": ("HGNetV2ForImageClassification", _HGNET),
    "TextNet": ("TextNetModel", _TEXTNET),
    "DPT": ("DPTForSemanticSegmentation", _SMALL_DPT),
}


def architectures() -> list[Architecture]:
    return [
        Architecture("transformers", name, partial(_network, name, arguments), shapes)
        for name, (arguments, shapes) in NETWORKS.items()
    ]


class FirstOutput(nn.Module):
    """The network with one tensor in and one out, as export wants it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(x, return_dict=False)[0]
        return found


def _network(name: str, arguments: dict[str, Any]) -> nn.Module:
    import transformers

    model_name, more = _OWN.get(name, (f"{name}Model", {}))
    config = getattr(transformers, f"{name}Config")(**arguments, **more)
    return FirstOutput(getattr(transformers, model_name)(config))
