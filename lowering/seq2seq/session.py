"""One decoding: the sources' cross keys and values, the self-attention caches, and how far they are filled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import LimitError, ProgramError
from .limits import Limits
from .runtime import Runtime


class Session:
    """Decodes over sources that were encoded once.

    Args:
        runtime: the programs.
        limits: what they are good for.
        source: token ids (B, S), or features.
        attention_mask: (B, S), 0 where the source is padded; for features (B, frames). Ones by default.

    Attributes:
        hidden: the encoder's hidden states (B, S, M).
        length: decoder tokens in the caches.

    Raises:
        LimitError: if there are more sources, or longer ones, than the programs were exported for.
        ProgramError: if the mask of a text has another shape than the text.
    """

    def __init__(self, runtime: Runtime, limits: Limits, source: Tensor, attention_mask: Tensor | None = None) -> None:
        if attention_mask is None:
            attention_mask = torch.ones((source.shape[0], source.shape[-1]), dtype=torch.long, device=source.device)
        if source.dim() == 2:
            limits.check_source(*source.shape)
            if attention_mask.shape != source.shape:
                raise ProgramError(
                    f"attention_mask has the source's shape {tuple(source.shape)}, not {tuple(attention_mask.shape)}"
                )
        else:
            limits.check_source(source.shape[0], 1)
        # compiled programs read memory as they were promised it: one layout, one type
        source = source.contiguous() if source.is_floating_point() else source.to(torch.long).contiguous()
        attention_mask = (attention_mask != 0).to(torch.long).contiguous()
        self._runtime, self._limits = runtime, limits
        self.hidden, keys, values = runtime.encoder(source, attention_mask)
        self._cross: tuple[Sequence[Tensor], Sequence[Tensor]] = (list(keys), list(values))
        length = self.hidden.shape[1]
        same = attention_mask.shape[1] == length
        self._mask = attention_mask if same else attention_mask.new_ones((source.shape[0], length))
        self._self: tuple[list[Tensor], list[Tensor]] | None = None
        self.length = 0

    def decode(self, decoder_input_ids: Tensor) -> Tensor:
        """Logits (N, T, V) of the next tokens (N, T), N a multiple of the number of sources.

        The first call takes the prompt; every further one a token per row, or several, one after the other.

        Raises:
            LimitError: if there are more rows per source, or more tokens, than the programs were exported for.
            ProgramError: for another number of rows than in the first call.
        """
        sources = self.hidden.shape[0]
        rows, tokens = decoder_input_ids.shape
        if rows % sources:
            raise LimitError(f"{rows} decoder rows for {sources} sources: every source needs as many")
        beams = rows // sources
        self._limits.check_target(beams, self.length + tokens)
        ids = decoder_input_ids.to(torch.long).reshape(sources, beams, tokens)
        if self._self is None:
            self._self = self._allocated(beams)
        elif self._self[0][0].shape[1] != beams:
            raise ProgramError(
                f"{rows} decoder rows after {sources * self._self[0][0].shape[1]}: their number is fixed"
            )
        if self.length == 0:
            logits = self._run(self._runtime.prefill, ids.contiguous(), 0)
        else:
            steps = [
                self._run(self._runtime.step, ids[:, :, i : i + 1].contiguous(), self.length + i) for i in range(tokens)
            ]
            logits = steps[0] if tokens == 1 else torch.cat(steps, 2)
        self.length += tokens
        return logits.reshape(rows, tokens, -1)

    def reorder(self, rows: Tensor) -> None:
        """Let decoder row i continue from row `rows[i]` of the same source; the cross cache stays."""
        if self._self is None:
            return
        for cache in (*self._self[0], *self._self[1]):
            flat = cache.flatten(0, 1)[:, :, : self.length]
            flat.copy_(flat.index_select(0, rows))

    def _run(self, program: object, ids: Tensor, position: int) -> Tensor:
        at = torch.tensor([position], dtype=torch.long, device=ids.device)
        return program(ids, at, self._mask, *self._self, *self._cross)  # type: ignore[operator, misc, no-any-return]

    def _allocated(self, beams: int) -> tuple[list[Tensor], list[Tensor]]:
        keys, values = self._cross
        capacity = self._limits.max_target_len

        def zeros(part: Sequence[Tensor]) -> list[Tensor]:
            return [t.new_zeros((t.shape[0], beams, t.shape[1], capacity, t.shape[3])) for t in part]

        return zeros(keys), zeros(values)
