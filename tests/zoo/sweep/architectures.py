"""Which architectures there are: what transformers' auto classes map, each model class once."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

FAMILIES = {
    "causal LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked LM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq LM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "speech seq2seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "base": "MODEL_MAPPING_NAMES",
}
"""The auto classes by what they are for. "base" adds the model types that no other one maps."""

SEQUENCES = ("input_ids", "input_features", "input_values", "decoder_input_ids")
"""Arguments that hold a sequence which an attention mask may pad."""


@dataclass(frozen=True)
class Architecture:
    """One model class.

    Attributes:
        model_type: the key in the auto class.
        class_name: the model class.
        family: one of `FAMILIES`.
    """

    model_type: str
    class_name: str
    family: str

    @property
    def model_class(self) -> Any:
        """The class; importing it may fail for want of a dependency."""
        return getattr(transformers, self.class_name)

    @property
    def config_class(self) -> type:
        """The config it takes: a composite model's text model has that of the text."""
        return self.model_class.config_class or CONFIG_MAPPING[self.model_type]

    @property
    def forward_parameters(self) -> dict[str, inspect.Parameter]:
        """What its forward takes, by name."""
        return dict(inspect.signature(self.model_class.forward).parameters)


def architectures() -> list[Architecture]:
    """Every architecture, in the order of the families."""
    found: dict[str, Architecture] = {}
    covered: set[str] = set()
    for family, mapping in FAMILIES.items():
        for model_type, names in getattr(modeling_auto, mapping).items():
            if family == "base" and model_type in covered:
                continue
            for name in (names,) if isinstance(names, str) else names[:1]:
                found.setdefault(name, Architecture(model_type, name, family))
        covered |= set(getattr(modeling_auto, mapping))
    return list(found.values())
