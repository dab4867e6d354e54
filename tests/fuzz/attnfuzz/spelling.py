"""Write a meaning down in torch, each part in one of the many ways to say it."""

from __future__ import annotations

from random import Random

from .meaning import And, InBlock, Le, Meaning, Near, Or, Padding, SameChunk, SameDocument, as_scalar
from .program import Program, Sizes
from .spelling_views import placed, rearranged
from .spelling_wraps import final, joined, wrapped


class Speller:
    """Writes lines; every choice comes from `rng`.

    Attributes:
        rng: the choices.
        lines: what was written.
        square: as many keys as queries, so that a query's number is a key's.
        plainness: the share of parts that are written in the plainest way.
    """

    def __init__(self, rng: Random, square: bool, plainness: float = 0.3) -> None:
        self.rng, self.square, self.plainness = rng, square, plainness
        self.lines: list[str] = []

    def new(self, text: str) -> str:
        """A new variable with this value."""
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name

    def do(self, statement: str) -> None:
        """A statement."""
        self.lines.append(statement)

    def choice(self, *options: str) -> str:
        """One of the options."""
        return self.rng.choice(options)

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.rng.random() < probability

    # --- positions --------------------------------------------------------------------------------------------

    def vector(self, n: str) -> str:
        """0, 1, ..., n - 1."""
        if self.chance(self.plainness):
            return self.new(f"torch.arange({n})")
        plain = f"torch.arange({n})"
        step = self.rng.randrange(1, 5)
        text = self.choice(
            f"{plain}.to(torch.int32)",
            f"torch.arange({n}, dtype=torch.int32)",
            f"torch.arange(1, {n} + 1) - 1",
            f"torch.ones({n}, dtype=torch.int64).cumsum(0) - 1",
            f"torch.cumsum(torch.ones_like({plain}), dim=-1) - 1",
            f"torch.full(({n},), 1).cumsum(-1).sub(1)",
            f"torch.ones({n}, dtype=torch.bool).cumsum(0) - 1",
            f"({plain} + {step}) - {step}",
            f"torch.arange({step}, {n} + {step}) - {step}",
            f"torch.arange(0, {step} * {n}, {step}) // {step}",
            f"torch.arange({n} - 1, -1, -1).flip(0)",
            f"{n} - 1 - {plain}.flip(0)",
            f"torch.arange({n} + {step})[{step}:] - {step}",
            f"torch.arange(2 * {n})[:{n}]",
            f"{plain}[None].expand(B, -1)[0]",
            f"torch.cat((torch.arange(2), torch.arange(2, {n})))",
            f"{plain}.repeat(2)[:{n}]",
            f"{plain}.unsqueeze(0).repeat(B, 1)[-1]",
            f"{plain}.index_select(0, {plain})",
            f"{plain}[{plain}]",
            f"torch.arange({n} + 2)[{plain} + 2] - 2",
            f"torch.stack((torch.zeros_like({plain}), {plain})).select(0, 1)",
            f"F.pad(torch.arange(1, {n}), (1, 0))",
            f"{plain}.clamp(min=0)",
            f"{plain}.abs()",
            f"-(-{plain})",
            f"{plain} % {n}",
            f"{plain}.float()",
            f"{plain}.to(torch.float32).long()",
            f"{plain}.double()",
            f"torch.arange({n}, dtype=torch.float32)",
            f"torch.gather({plain}, 0, {plain})",
            f"F.embedding({plain}, {plain}[:, None])[:, 0]",
            f"torch.where(torch.ones({n}, dtype=torch.bool), {plain}, 7)",
            f"{plain}.clone()",
            f"torch.arange({n} * B).view(B, {n})[0]",
            f"torch.arange({n} * 2).view({n}, 2)[:, 0] // 2",
            f"{plain}.roll(1).roll(-1)",
            f"torch.maximum({plain}, torch.zeros({n}, dtype=torch.int64))",
            f"{plain} * 1 + 0",
        )
        return self.new(text)

    def position(self, coordinate: str) -> str:
        """The query's or key's number, in a shape that broadcasts along the others."""
        if self.square and coordinate != "c" and self.chance(0.3):
            return placed(self, self.vector(self.choice("Q", "K")), coordinate)
        if coordinate == "c":
            text = self.choice("cache", "cache.clone()", "cache + 1 - 1", "cache[torch.arange(Q)]", "cache.view(Q)")
            return placed(self, self.new(text), "q")
        return placed(self, self.vector(coordinate.upper()), coordinate)

    # --- conditions -------------------------------------------------------------------------------------------

    def write(self, meaning: Meaning) -> str:
        """A variable of truth values that broadcasts to (B, H, Q, K)."""
        if self.chance(0.08):
            return wrapped(self, self._vmapped(meaning))
        match meaning:
            case Le():
                name = self._triangle(meaning) if self.chance(0.25) else None
                name = name or self._le(meaning)
            case Near(width):
                name = self._near(width)
            case SameChunk(size):
                name = self._same_chunk(size)
            case Padding(source):
                name = self._padding(source)
            case SameDocument():
                name = self._same_document()
            case InBlock():
                name = self.new(self.choice("(doc >= 1)[:, None, :, None]", "(doc > 0)[:, None, :].unsqueeze(-1)"))
            case And(parts) | Or(parts):
                name = joined(self, [self.write(p) for p in self.shuffled(parts)], isinstance(meaning, And))
        return wrapped(self, name)

    def shuffled(self, parts: tuple[Meaning, ...]) -> list[Meaning]:
        """The parts in any order."""
        return self.rng.sample(parts, len(parts))

    def _operand(self, name: str) -> str:
        if name != "0":
            return self.position(name)
        return self.new(self.choice("torch.zeros((), dtype=torch.int64)", "torch.tensor(0)", "torch.arange(1)"))

    def _vmapped(self, meaning: Meaning) -> str:
        """A function of single positions, mapped over all of them as transformers does it."""
        text = f"lambda b, h, q, k: {as_scalar(meaning)}"
        for dims in ("None, None, None, 0", "None, None, 0, None", "None, 0, None, None", "0, None, None, None"):
            text = f"torch.vmap({text}, ({dims}))"
        return self.new(f"{text}(torch.arange(B), torch.arange(1), torch.arange(Q), torch.arange(K))")

    def _le(self, m: Le) -> str:
        if m.left == "0":
            b = self.position(m.right)
            more = f" + {m.offset}" if m.offset != "0" else ""
            return self.new(self.choice(f"{b}{more} >= 0", f"0 <= {b}{more}", f"~({b}{more} < 0)", f"{b}{more} > -1"))
        a, b, c = self._operand(m.left), self._operand(m.right), m.offset
        moved = b
        if c != "0":
            moved = f"({b} + {c})"
            if self.chance(0.3):
                moved, a = b, self.new(f"{a} - ({c})")
        if self.chance(self.plainness):
            return self.new(self.choice(f"{a} <= {moved}", f"{moved} >= {a}"))
        shift = self.rng.randrange(1, 6)
        text = self.choice(
            f"~({a} > {moved})",
            f"{a} < {moved} + 1",
            f"{a} - {moved} <= 0",
            f"{moved} - {a} >= 0",
            f"{moved} - {a} > -1",
            f"({a} - {moved}).clamp(min=0) == 0",
            f"({moved} - {a}).clamp(max=0) == 0",
            f"({moved} - {a}).clamp(-1, 0) >= 0",
            f"torch.minimum({a} - {moved}, ({a} - {moved}) * 0) == {a} - {moved}",
            f"torch.maximum({a} - {moved}, ({a} - {moved}) * 0) == 0",
            f"torch.where({a} <= {moved}, 1, 0) == 1",
            f"torch.where({a} > {moved}, -inf, 0.0) == 0",
            f"torch.where({a} <= {moved}, 0.0, torch.finfo(torch.float32).min) >= 0",
            f"({a} > {moved}) == False",
            f"({a} <= {moved}) != False",
            f"({a} > {moved}).logical_not()",
            f"({a} > {moved}) ^ True",
            f"torch.logical_xor({a} > {moved}, torch.tensor(True))",
            f"1 - ({a} > {moved}).int() > 0",
            f"(1.0 - ({a} <= {moved}).float()) == 0",
            f"2 * {a} <= 2 * {moved} + 1",
            f"({a} - {moved}).float() < 0.5",
            f"({a} - {moved}).float() <= 0",
            f"({moved} - {a} + 1).clamp(0, 1).bool()",
            f"torch.le({a} + {shift}, {moved} + {shift})",
            f"torch.ge({moved}, {a})",
            f"~~({a} <= {moved})",
            f"~torch.lt({moved}, {a})",
            f"torch.sign({moved} - {a}) >= 0",
            f"torch.logical_not({a} - {moved} > 0)",
            f"({a} == {moved}) | ({a} < {moved})",
            f"({a} <= {moved}).to(torch.uint8) == 1",
            f"({a} - {moved} - 1) < 0",
        )
        return self.new(text)

    def _triangle(self, m: Le) -> str | None:
        """By tril or triu of a matrix of ones or zeros, where the condition is a diagonal."""
        if {m.left, m.right} != {"q", "k"}:
            return None
        dtype = self.choice("torch.bool", "torch.bool", "torch.int64", "torch.float32", "torch.uint8", "torch.int32")
        ones = self.choice("torch.ones(Q, K, dtype={0})", "torch.ones((Q, K)).to({0})", "torch.full((Q, K), 1).to({0})")
        ones = ones.format(dtype)
        if m.left == "k":  # k <= q + c
            diagonal, kept, rest = m.offset, "tril", "triu"
            beyond = f"{m.offset} + 1"
        else:  # q <= k + c: k >= q - c
            diagonal, kept, rest = f"-({m.offset})", "triu", "tril"
            beyond = f"-({m.offset}) - 1"
        form = self.choice("kept", "kept", "rest", "transposed", "method", "inf", "large")
        match form:
            case "kept":
                name = self.new(f"torch.{kept}({ones}, diagonal={diagonal})")
            case "method":
                name = self.new(f"{ones}.{kept}({diagonal})")
            case "transposed":
                name = self.new(f"torch.{rest}({ones}.T.contiguous(), diagonal=-({diagonal})).T")
            case "large" if self.square:
                name = self.new(f"torch.ones(Q + 3, K + 3, dtype={dtype}).{kept}({diagonal})[:Q, :K]")
            case "inf":
                full = self.new(f"torch.full((Q, K), {self.choice('-inf', 'torch.finfo(torch.float32).min')})")
                name = self.new(f"torch.{rest}({full}, diagonal={beyond})")
                return self.new(self.choice(f"{name} == 0", f"~({name} < 0)", f"{name} >= 0.0", f"{name} > -1.0"))
            case _:
                name = self.new(f"torch.{rest}({ones}, diagonal={beyond})")
                return self.new(self.choice(f"{name} == 0", f"~{name}.bool()", f"{name} < 1", f"{name}.logical_not()"))
        return self.new(self.choice(f"{name}.bool()", f"{name} != 0", f"{name} == 1", f"{name} > 0"))

    def _near(self, width: int) -> str:
        q, k = self.position("q"), self.position("k")
        text = self.choice(
            f"({q} - {k}).abs() <= {width}",
            f"torch.abs({k} - {q}) < {width + 1}",
            f"(({q} - {k}) <= {width}) & (({k} - {q}) <= {width})",
            f"~((({q} - {k}).abs()) > {width})",
            f"({k} - {q}).clamp(-{width}, {width}) == {k} - {q}",
            f"torch.maximum({q} - {k}, {k} - {q}) <= {width}",
            f"torch.logical_and({k} >= {q} - {width}, {k} <= {q} + {width})",
            f"torch.ones(Q, K).tril({width}).triu(-{width}) == 1",
            f"({k} > {q} - {width + 1}) & ({k} < {q} + {width + 1})",
            f"~(({k} > {q} + {width}) | ({k} < {q} - {width}))",
        )
        return self.new(text)

    def _same_chunk(self, size: int) -> str:
        q, k = self.position("q"), self.position("k")
        q, k = (self.new(f"{n}.long()") for n in (q, k))
        text = self.choice(
            f"{q} // {size} == {k} // {size}",
            f"torch.div({q}, {size}, rounding_mode='floor') == torch.div({k}, {size}, rounding_mode='floor')",
            f"{q} - {q} % {size} == {k} - {k} % {size}",
            f"({q} // {size} - {k} // {size}).abs() == 0",
            f"~({q} // {size} != {k} // {size})",
        )
        return self.new(text)

    def _padding(self, source: str) -> str:
        two = source  # (B, K)
        if source == "pad_b":
            two = self.choice(source, f"{source}.clone()", f"({source} == True)", f"(~{source}).logical_not()")
        else:
            two = self.choice(
                f"{source}.bool()",
                f"{source}.to(torch.bool)",
                f"({source} != 0)",
                f"~({source} == 0)",
                f"({source} == 0).logical_not()",
                f"({source} == 1)",
                f"(1 - {source} == 0)" if source != "pad_u" else f"({source} == 1)",
                f"({source} > 0)" if source != "pad_f" else f"({source} != 0)",
                f"({source} >= 1)" if source != "pad_f" else f"({source} == 1)",
                f"{source}.eq(0).eq(False)",
                f"torch.where({source} == 0, False, True)",
            )
        name = self.new(two)
        text = self.choice(
            f"{name}[:, None, None, :]",
            f"{name}[:, None, None]",
            f"{name}.unsqueeze(1).unsqueeze(2)",
            f"{name}.view(B, 1, 1, K)",
            f"{name}[:, None, None, :].expand(B, 1, Q, K)",
            f"{name}[torch.arange(B)[:, None, None, None], torch.arange(K)]",
            f"{name}[:, torch.arange(K)][:, None, None, :]",
            f"{name}.reshape(B, 1, K).unsqueeze(1)",
        )
        return self.new(text)

    def _same_document(self) -> str:
        return self.new(
            self.choice(
                "doc[:, None, :, None] == doc[:, None, None, :]",
                "(doc.unsqueeze(-1) == doc.unsqueeze(-2)).unsqueeze(1)",
                "(doc[:, :, None] - doc[:, None, :] == 0)[:, None]",
                "~(doc[:, None, :, None] != doc[:, None, None, :])",
            )
        )


def spelled(
    rng: Random, meaning: Meaning, *, square: bool, dynamic: bool, sizes: Sizes, boolean: bool = False
) -> Program:
    """A program that makes the mask of a meaning: of truth values if `boolean`, else perhaps to be added."""
    speller = Speller(rng, square, plainness=rng.choice((0.2, 0.5, 0.8)))
    name = rearranged(speller, speller.write(meaning))
    name = name if boolean else final(speller, name)
    return Program(tuple(speller.lines), (name,), square, dynamic, sizes)
