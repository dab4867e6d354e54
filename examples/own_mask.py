"""A mask of one's own: a word and a formula. Finders suggest, the prover decides."""

from dataclasses import dataclass

import torch

import attnlower
from attnlower.patterns import DEFAULT_TEMPLATES, build

q, k = build.coord("q"), build.coord("k")


@dataclass(frozen=True)
class Dilated:
    """Every `step`-th key up to the query's own."""

    step: int
    kind: str = "dilated"

    def allowed(self, facts):
        """Who may attend to whom, as a formula over the coordinates."""
        apart = build.mod(build.sub(q, k), build.const_int(self.step))
        return build.and_(build.le(k, q), build.eq0(apart))


@DEFAULT_TEMPLATES.register("dilated")
def find_dilated(expr, facts):
    """Candidates; a wrong one is refuted."""
    return [Dilated(step) for step in range(2, 9)]


def attend(x: torch.Tensor) -> torch.Tensor:
    """Every third key up to the query's own: x (batch, heads, length, width)."""
    position = torch.arange(x.shape[2])
    apart = position[:, None] - position[None, :]
    return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=(apart >= 0) & (apart % 3 == 0))


def ahead(x: torch.Tensor) -> torch.Tensor:
    """Every third key, the next one included: no `Dilated`."""
    position = torch.arange(x.shape[2])
    apart = position[:, None] - position[None, :]
    return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=(apart >= -3) & (apart % 3 == 0))


for function in (attend, ahead):
    (site,) = attnlower.explain(function, torch.randn(1, 2, 8, 4)).sites
    print(f"{function.__name__}: {site.verdict}, {sorted(site.kinds)}: {site.formula}")
