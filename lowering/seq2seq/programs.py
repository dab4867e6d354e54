"""An exported encoder-decoder model."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ...errors import OptionError, ProgramError
from ..history import merged
from ..report import Report
from .limits import Limits
from .runtime import Runtime
from .session import Session
from .weights import NAME as WEIGHTS
from .weights import load_programs, save_programs

PARTS = ("encoder", "prefill", "step")
_META = "seq2seq.json"


@dataclass(frozen=True)
class Seq2SeqPrograms:
    """Encoder, prefill and step of an encoder-decoder model, lowered.

    Attributes:
        programs: "encoder", "prefill" and "step" as ExportedPrograms.
        reports: what attnlower found in each and did about it; empty for programs loaded from a folder.
        limits: the sizes they are good for.
        model_class: name of the model's class in transformers.
        config: the model's config.
        generation_config: the model's defaults for `generate`.
        runtime: what runs them; PyTorch itself until `compile`.
    """

    programs: Mapping[str, ExportedProgram]
    reports: Mapping[str, Report]
    limits: Limits
    model_class: str
    config: Any
    generation_config: Any
    runtime: Runtime | None = field(default=None, repr=False)

    @property
    def report(self) -> Report:
        """The three reports as one."""
        return merged(self.reports[name] for name in PARTS if name in self.reports)

    def session(self, source: Tensor, attention_mask: Tensor | None = None) -> Session:
        """Encode sources, to be decoded token by token.

        Args:
            source: token ids (B, S), or features for speech.
            attention_mask: (B, S), 0 where padded; ones by default, whatever the ids are.

        Raises:
            LimitError: if there are more sources, or longer ones, than the programs were exported for.
        """
        return Session(self._runtime(), self.limits, source, attention_mask)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        input_features: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate as `model.generate` does: same arguments, same result.

        Args:
            input_ids: token ids (B, S) of the sources; for speech the features may stand here, too.
            input_features: (B, F, frames), for speech.
            attention_mask: (B, S), 0 where padded. Without one it is as `model.generate` without one: in transformers 5
                every position counts, padding too.
            kwargs: of transformers' `generate`: num_beams, max_new_tokens, min_length, no_repeat_ngram_size,
                forced_bos_token_id, decoder_input_ids, ...

        Raises:
            ProgramError: without a source, or with two.
            LimitError: if the batch, the source, the beams or the tokens asked for exceed the programs' limits, before
                anything runs.
        """
        from .generation import bound

        given = [t for t in (input_ids, input_features) if t is not None]
        if len(given) != 1:
            raise ProgramError("generate takes the sources as input_ids, or for speech as input_features")
        (source,) = given
        width = source.shape[1] if source.dim() == 2 else 1
        self.limits.check_source(source.shape[0], width)
        beams = kwargs.get("num_beams", getattr(self.generation_config, "num_beams", 1)) or 1
        rows = max(beams, kwargs.get("num_return_sequences", 1) or 1)
        self.limits.check_target(rows, kwargs.get("max_length") or 1)
        if kwargs.get("max_new_tokens"):
            self.limits.check_target(rows, kwargs["max_new_tokens"] + 1)
        weights = next(iter(self.programs["step"].state_dict.values()))
        model = bound(self._stand_in, self._runtime(), self.limits, weights)
        if attention_mask is not None:
            kwargs["attention_mask"] = attention_mask
        return model.generate(source, **kwargs)

    def compile(self, target: str = "inductor", **options: Any) -> Seq2SeqPrograms:
        """The same programs, run by a backend.

        Args:
            target: "eager" (PyTorch itself), "inductor", "aot_inductor" (packages), "executorch" (`.pte` files) or
                "tensorrt".
            options: of the backend. `folder` for "aot_inductor" and "executorch": where the files are kept, to be
                used again for the same programs.

        Raises:
            OptionError: for an unknown target.
            BackendError: if ExecuTorch is missing. TensorRTError: if torch_tensorrt is.
        """
        from .targets import RUNTIMES

        if target not in RUNTIMES:
            raise OptionError(f"unknown target {target!r} for encoder-decoder programs; there are {sorted(RUNTIMES)}")
        return replace(self, runtime=RUNTIMES[target](self, **options))

    def save(self, folder: str | Path) -> None:
        """Write the programs, configs and limits into a folder; weights that programs share once.

        Args:
            folder: made if it is not there.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        save_programs(self.programs, path)
        self.config.save_pretrained(path)
        defaults = copy.deepcopy(self.generation_config)
        defaults._from_model_config = False  # else reading drops what a class adds, such as Whisper's languages
        defaults.save_pretrained(path)
        meta = {"model_class": self.model_class, "limits": self.limits.to_dict()}
        (path / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Seq2SeqPrograms:
        """Read what `save` has written.

        Raises:
            ProgramError: if the folder holds no such programs.
        """
        from transformers import AutoConfig, GenerationConfig

        path = Path(folder)
        if not (path / _META).is_file():
            raise ProgramError(f"{path} holds no encoder-decoder programs: there is no {_META}")
        try:
            meta = json.loads((path / _META).read_text(encoding="utf-8"))
            limits, model_class = Limits(**meta["limits"]), str(meta["model_class"])
        except (ValueError, KeyError, TypeError) as error:
            raise ProgramError(f"{path / _META} is not what `save` writes: {error}") from error
        lacking = [file for file in (*(f"{name}.pt2" for name in PARTS), WEIGHTS) if not (path / file).is_file()]
        if lacking:
            raise ProgramError(f"{path} lacks {', '.join(lacking)}")
        return cls(
            programs=load_programs(PARTS, path),
            reports={},
            limits=limits,
            model_class=model_class,
            config=AutoConfig.from_pretrained(path),
            generation_config=GenerationConfig.from_pretrained(path),
        )

    @cached_property
    def _stand_in(self) -> Any:
        from .generation import stand_in

        return stand_in(self.model_class, self.config, self.generation_config)

    def _runtime(self) -> Runtime:
        return self._eager if self.runtime is None else self.runtime

    @cached_property
    def _eager(self) -> Runtime:
        from .targets import RUNTIMES

        return RUNTIMES["eager"](self)
