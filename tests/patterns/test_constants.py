"""Closed forms of constant tensors: exact for every element, or none."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attnlower
from attnlower.patterns import Expr, Facts, Prover, build, evaluate
from attnlower.patterns.biases import unbounded_cells
from attnlower.patterns.constants import Constants, look_at, same_bits
from attnlower.patterns.expr import CellRef
from attnlower.patterns.floats import arithmetic, cast_float, to_float
from attnlower.patterns.regions import MAX_EXCEPTIONS, piecewise
from attnlower.patterns.verdict import Proved, Refuted

INF = float("inf")
N = 12
ROW, COLUMN = torch.arange(N)[:, None], torch.arange(N)[None, :]
Q, K = build.coord("q"), build.coord("k")
NAMES = ("a", "b", "q", "k")


def cell_of(tensor: torch.Tensor, *coords: Expr) -> Expr:
    return build.cell(CellRef("x", "x", tensor.dtype, is_input=False), coords)


def read(tensor: torch.Tensor) -> Expr | None:
    """The formula at coordinates (..., q, k), after a comparison with every element; None if there is none."""
    constant = look_at(tensor)
    if constant.form is None:
        return None
    names = NAMES[len(NAMES) - tensor.dim() :]
    coords = tuple(build.coord(n) for n in names)
    expr = constant.form(coords, lambda: cell_of(tensor, *coords))
    grids = {
        name: torch.arange(size).view(*(size if axis == own else 1 for axis in range(tensor.dim())))
        for own, (name, size) in enumerate(zip(names, tensor.shape, strict=True))
    }
    found = evaluate(expr, grids, {"x": tensor}).expand(tensor.shape).to(tensor.dtype)
    if tensor.dtype.is_floating_point:
        # which NaN it is does not matter; the sign of zero does
        assert torch.equal(found.isnan(), tensor.isnan())
        found, tensor = (t.nan_to_num(nan=1.25, posinf=INF, neginf=-INF).contiguous() for t in (found, tensor))
    assert same_bits(found.contiguous(), tensor.contiguous()), f"{expr!r} is not {tensor}"
    return expr


def additive(allowed: torch.Tensor, blocked: float = -INF) -> torch.Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, blocked)


# --- two values over two axes ---------------------------------------------------------------------------------


def plus(expr: Expr, number: int) -> Expr:
    return build.add(expr, build.const_int(number))


def below(expr: Expr, number: int) -> Expr:
    return build.lt(expr, build.const_int(number))


def chunk(expr: Expr) -> Expr:
    return build.floordiv(expr, build.const_int(5))


CAUSAL = build.le(K, Q)
HERE = build.and_(build.eq(Q, build.const_int(5)), build.eq(K, build.const_int(3)))
AHEAD = build.and_(build.eq(Q, build.const_int(3)), build.eq(K, build.const_int(4)))
REGIONS: dict[str, tuple[torch.Tensor, Expr]] = {
    "causal": (COLUMN <= ROW, CAUSAL),
    "strictly causal": (COLUMN < ROW, build.lt(K, Q)),
    "transposed": (ROW <= COLUMN, build.le(Q, K)),
    "one key ahead": (COLUMN <= ROW + 1, build.le(K, plus(Q, 1))),
    "window": ((COLUMN <= ROW) & (COLUMN > ROW - 4), build.and_(CAUSAL, build.lt(plus(Q, -4), K))),
    "window both ways": ((COLUMN - ROW).abs() < 3, build.and_(build.le(K, plus(Q, 2)), build.le(plus(Q, -2), K))),
    "prefix": ((COLUMN < 4) | (COLUMN <= ROW), build.or_(below(K, 4), CAUSAL)),
    "prefix of two": ((COLUMN < 2) | (COLUMN <= ROW), build.or_(below(K, 2), CAUSAL)),
    "padded on the right": ((COLUMN <= ROW) & (COLUMN < 9), build.and_(below(K, 9), CAUSAL)),
    "chunks": (
        (COLUMN // 5 == ROW // 5) & (COLUMN <= ROW),
        build.and_(CAUSAL, build.le(build.scaled(chunk(Q), 5), K)),
    ),
    "chunks that begin before": (
        ((COLUMN + 2) // 5 == (ROW + 2) // 5) & (COLUMN <= ROW),
        build.and_(CAUSAL, build.le(build.scaled(chunk(plus(Q, 2)), 5), plus(K, 2))),
    ),
    "one element off": ((COLUMN <= ROW) & ~((ROW == 5) & (COLUMN == 3)), build.and_(CAUSAL, build.not_(HERE))),
    "one element on": ((COLUMN <= ROW) | ((ROW == 3) & (COLUMN == 4)), build.or_(CAUSAL, AHEAD)),
}
OTHER_REGIONS: dict[str, torch.Tensor] = {
    "sinks": (COLUMN <= ROW) & ((COLUMN < 2) | (COLUMN > ROW - 3)),
    "global tokens": (COLUMN < 2) | (ROW < 2) | ((COLUMN - ROW).abs() < 3),
    "padded on the left": (COLUMN <= ROW) & (COLUMN >= 3),
    "images": (COLUMN <= ROW) | ((ROW >= 3) & (ROW < 7) & (COLUMN >= 3) & (COLUMN < 7)),
    "diagonal": ROW == COLUMN,
    "all but the diagonal": ROW != COLUMN,
    "documents": ((ROW < 3) == (COLUMN < 3)) & ((ROW < 8) == (COLUMN < 8)) & (COLUMN <= ROW),
    "two elements on": (COLUMN <= ROW) | ((ROW == 3) & (COLUMN == 4)) | ((ROW == 0) & (COLUMN == 11)),
}


@pytest.mark.parametrize("name", list(REGIONS))
def test_a_region_is_read_as_the_formula_it_was_made_by(name: str) -> None:
    mask, formula = REGIONS[name]
    assert read(mask) is formula
    assert read(~mask) is build.not_(formula)


@pytest.mark.parametrize("name", [*REGIONS, *OTHER_REGIONS])
def test_regions_of_every_dtype_and_rank(name: str) -> None:
    mask = {**{n: m for n, (m, _) in REGIONS.items()}, **OTHER_REGIONS}[name]
    low = torch.finfo(torch.float32).min
    for tensor in (
        mask,
        additive(mask),
        additive(mask, low),
        (1.0 - mask.float()) * low,  # allowed is -0.0
        mask.float(),
        mask.to(torch.uint8),
        mask.long() - 1,
        mask.bfloat16(),
        additive(mask).half()[None, None],
        mask[None].expand(3, -1, -1),
        mask[:, None, :, None].expand(N, 2, N, 2),
        mask.t(),
    ):
        assert read(tensor) is not None


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 9), (9, 5), (2, 2)])
def test_small_and_oblong_masks(shape: tuple[int, int]) -> None:
    for diagonal in (-3, -1, 0, 1, 4):
        assert read(torch.ones(shape).tril(diagonal)) is not None
        assert read(torch.ones(shape, dtype=torch.bool).triu(diagonal)) is not None


@pytest.mark.parametrize("flips", [1, 3, MAX_EXCEPTIONS])
def test_a_few_exceptions_are_spelled_out_and_many_are_no_pattern(flips: int) -> None:
    rng = random.Random(0)
    size = 64
    mask = torch.ones(size, size, dtype=torch.bool).tril()
    for place in rng.sample(range(size * size), flips):
        mask.view(-1)[place].logical_not_()
    expr = read(mask)
    assert expr is not None
    facts = Facts({}, {"q": build.const_int(size), "k": build.const_int(size)})
    assert isinstance(Prover().valid(build.iff(expr, CAUSAL), facts), Refuted)


def test_noise_is_no_pattern() -> None:
    torch.manual_seed(0)
    for tensor in (torch.rand(64, 64) > 0.5, (torch.rand(64, 64) > 0.02).tril(), torch.randint(0, 9, (64,))):
        assert read(tensor) is None


@pytest.mark.parametrize("size", [8, 40])
def test_every_flipped_element_is_noticed(size: int) -> None:
    """Where the causal mask is flipped in one element, the witness is that element."""
    facts = Facts({}, {"q": build.const_int(size), "k": build.const_int(size)})
    rng = random.Random(size)
    places = range(size * size) if size < 10 else rng.sample(range(size * size), 40)
    for place in places:
        mask = torch.ones(size, size, dtype=torch.bool).tril()
        mask.view(-1)[place].logical_not_()
        expr = read(mask)
        assert expr is not None
        verdict = Prover().valid(build.iff(expr, CAUSAL), facts)
        assert isinstance(verdict, Refuted)
        assert (verdict.witness["q"], verdict.witness["k"]) == divmod(place, size)


# --- integers, vectors, slices --------------------------------------------------------------------------------


def test_integers() -> None:
    ids = torch.arange(40)
    assert read(ids) is K
    assert read(ids[None, :] - ids[:, None]) is build.sub(K, Q)
    assert read((3 * ids - 7).to(torch.int16)[None]) is plus(build.scaled(K, 3), -7)
    assert read(ids // 5) is chunk(K)
    assert read((ids + 2) // 5) is chunk(plus(K, 2))
    assert read(ids.float()) is not None
    assert read(torch.cat([ids[:7], ids[:9], ids[:5]])) is not None
    assert read(torch.repeat_interleave(torch.tensor([4, 0, 9]), torch.tensor([3, 1, 5]))) is not None
    assert read(ids % 7) is not None
    off = ids.clone()
    off[17] += 1
    assert read(off) is not K


def test_vectors_and_slices() -> None:
    assert read(torch.tensor([1, 1, 1, 0, 0])) is not None
    assert read(torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]])) is not None
    assert read(torch.tensor([0.5, 0.25, 0.125])[:, None, None]) is not None
    assert read(torch.stack([REGIONS["causal"][0], REGIONS["window"][0], REGIONS["chunks"][0]])) is not None
    assert read(torch.rand(40)) is None
    assert read(torch.rand(20, 3, 3)) is None


@pytest.mark.parametrize("value", [True, 3, -2.5, INF, -INF, float("nan"), -0.0])
def test_one_value(value: Any) -> None:
    for shape in ((), (1,), (4,), (1, 1, 3, 5)):
        expr = read(torch.full(shape, value))
        assert expr is not None
        assert expr.is_const


def test_a_non_finite_entry_is_not_overlooked() -> None:
    for value in (INF, float("nan")):
        mask = additive(REGIONS["causal"][0])
        mask[7, 2] = value
        expr = read(mask)
        assert expr is None or expr is not read(additive(REGIONS["causal"][0]))


def test_empty_and_strange_tensors_have_no_closed_form() -> None:
    constants = Constants()
    strange = (torch.empty(0, 3), torch.empty(3, device="meta"), torch.zeros(2, dtype=torch.complex64))
    for tensor in (*strange, torch.eye(3).to_sparse()):
        assert constants.of(tensor).form is None
        assert math.isinf(constants.of(tensor).bound)


def test_the_default_device_does_not_matter() -> None:
    mask, formula = REGIONS["chunks"]
    with torch.device("meta"):
        found = look_at(mask)
        assert found.form is not None
        assert found.form((Q, K), lambda: build.ZERO) is formula
        assert look_at(ROW - COLUMN).form is not None
        assert look_at(torch.arange(40, device="cpu") // 5).form is not None


# --- floats without a pattern ---------------------------------------------------------------------------------


def test_a_bias_with_a_causal_mask_in_it_blocks_where_the_mask_does() -> None:
    torch.manual_seed(0)
    bias = torch.rand(20, N, N)
    constant = look_at(bias.masked_fill(COLUMN > ROW, -INF))
    assert constant.form is not None
    assert 0 < constant.bound < 1
    expr = read(bias.masked_fill(COLUMN > ROW, -INF))
    assert expr is not None
    assert expr.args[0] in (CAUSAL, build.not_(CAUSAL))


@pytest.mark.parametrize("value", [INF, -INF, float("nan"), torch.finfo(torch.float32).min, 1e35, -1e31])
def test_a_bias_is_bounded_only_if_every_element_is(value: float) -> None:
    torch.manual_seed(0)
    slopes = torch.rand(40)
    assert look_at(slopes).bound == slopes.max()
    slopes[3] = value
    constant = look_at(slopes)
    # one blocked element follows a pattern; the others are bounded
    assert math.isinf(constant.bound) or (value <= -3e38 and constant.form is not None)


def test_which_elements_of_a_bias_may_block() -> None:
    slopes = torch.rand(40)
    slope = cell_of(slopes, build.coord("h"))
    ramp = to_float(build.sub(K, Q), torch.float32)
    product = arithmetic("mul", torch.float32, slope, ramp)
    bounds = {"x": 0.5}
    assert unbounded_cells(slope, bounds) == []
    assert unbounded_cells(product, bounds) == []
    assert unbounded_cells(build.ite(CAUSAL, product, build.const_float(-INF)), bounds) == []
    assert unbounded_cells(slope, {}) == [slope]
    assert unbounded_cells(product, {"x": INF}) == [slope]
    assert unbounded_cells(arithmetic("log", torch.float32, slope), bounds) == [slope]
    assert unbounded_cells(arithmetic("div", torch.float32, ramp, slope), bounds) == [slope]
    assert unbounded_cells(cast_float(slope, torch.float32, torch.float16), bounds) == []
    assert unbounded_cells(cast_float(slope, torch.float32, torch.float16), {"x": 1e9}) == [slope]
    table = build.cell(CellRef("w", "w", torch.float32, is_input=True), (cell_of(torch.arange(3), Q),))
    assert unbounded_cells(table, {"w": 1.0, "x": INF}) != []
    assert unbounded_cells(table, {"w": 1.0, "x": 30.0}) == []


# --- equality, caching, speed ---------------------------------------------------------------------------------


def test_same_bits() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    for dtype in (torch.bool, torch.uint8, torch.float16, torch.float32, torch.int64):
        for shape in ((), (3,), (8,), (5, 8), (0,)):
            left = torch.ones(shape).to(dtype)
            assert same_bits(left, left.clone())
            assert not same_bits(left, torch.zeros(shape).to(dtype)) or 0 in shape
    square = torch.arange(64).view(8, 8)
    assert same_bits(square.t(), square.t().contiguous())
    assert not same_bits(square.t(), square)
    assert same_bits(square.to(torch.uint8).view(-1)[3:11], torch.arange(3, 11, dtype=torch.uint8))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    assert same_bits(torch.nn.Parameter(torch.zeros(3)), torch.zeros(3))


def test_equal_tensors_are_looked_at_once_and_changed_ones_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[torch.Tensor] = []

    def counted(tensor: torch.Tensor) -> Any:
        looked.append(tensor)
        return look_at(tensor)

    monkeypatch.setattr("attnlower.patterns.constants.look_at", counted)
    constants = Constants()
    layers = [torch.ones(16, 16).tril() for _ in range(6)]
    assert len({id(constants.of(t)) for t in layers}) == 1
    assert len(looked) == 1
    constants.of(torch.ones(16, 16).tril(1))
    assert len(looked) == 2


def test_large_masks_are_quick() -> None:
    mask = torch.ones(8192, 8192, dtype=torch.bool).tril()
    mask[5000, 17] = False
    started = time.thread_time()
    constant = look_at(mask)
    elapsed = time.thread_time() - started
    assert constant.form is not None
    expr = constant.form((Q, K), lambda: build.TRUE)
    facts = Facts({}, {"q": build.const_int(8192), "k": build.const_int(8192)})
    verdict = Prover().valid(build.iff(expr, CAUSAL), facts)
    assert isinstance(verdict, Refuted)
    assert (verdict.witness["q"], verdict.witness["k"]) == (5000, 17)
    assert elapsed < 3.0, f"{elapsed:.2f} s"


def test_pieces() -> None:
    assert piecewise(torch.tensor([0, 0, 0, 3, 4, 5, 9])) == [(0, 3, 0, 0), (3, 6, 1, 0), (6, 7, 0, 9)]
    assert piecewise(torch.arange(5)) == [(0, 5, 1, 0)]
    assert piecewise(torch.tensor([3, 1] * 20)) is None


# --- any mask -------------------------------------------------------------------------------------------------


def _primitive(rng: random.Random, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    number = rng.randint
    shift, size = number(0, 3), number(1, 6)
    ids = torch.tensor(sorted(number(0, 3) for _ in range(24)))
    choices: list[Callable[[], torch.Tensor]] = [
        lambda: columns <= rows + number(-3, 3),
        lambda: columns >= rows - number(-2, 4),
        lambda: (columns + shift) // size == (rows + number(0, 3)) // size,
        lambda: (columns < number(0, 12)) & (rows >= 0),
        lambda: (columns >= number(0, 12)) & (rows >= 0),
        lambda: (rows < number(0, 12)) & (columns >= 0),
        lambda: (rows - columns).abs() < size,
        lambda: ids[rows] == ids[columns],
        lambda: torch.tensor([[rng.random() > 0.04 for _ in columns[0]] for _ in rows]),
        lambda: torch.tensor([[rng.random() > 0.5 for _ in columns[0]] for _ in rows]),
        lambda: torch.tensor([[rng.random() > 0.2] for _ in rows]) & (columns >= 0),
        lambda: (rows + columns) % 2 == 0,
    ]
    return rng.choice(choices)()


def _any_tensor(rng: random.Random) -> torch.Tensor:
    rows, columns = torch.arange(rng.randint(1, 20))[:, None], torch.arange(rng.randint(1, 20))[None]
    mask = _primitive(rng, rows, columns)
    for _ in range(rng.randint(0, 2)):
        other = _primitive(rng, rows, columns)
        mask = rng.choice([mask & other, mask | other, mask & ~other])
    dtype = rng.choice([torch.float32, torch.float16, torch.bfloat16, torch.float64])
    low = rng.choice([-INF, torch.finfo(dtype).min])
    numbers = torch.tensor([[rng.random() for _ in columns[0]] for _ in rows], dtype=dtype)
    choices: list[Callable[[], torch.Tensor]] = [
        lambda: mask,
        lambda: mask.to(rng.choice([torch.int64, torch.uint8, torch.int8, torch.bfloat16])),
        lambda: torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, low),
        lambda: numbers.masked_fill(mask, low),
        lambda: mask[None, :, None].expand(2, len(rows), 3, columns.shape[1]),
        lambda: torch.stack([mask, ~mask, mask.logical_and(columns <= rows)]),
        lambda: (rng.randint(-3, 3) * rows + rng.randint(-3, 3) * columns + 1).to(rng.choice([torch.int32, dtype])),
        lambda: rng.randint(0, 1) * rows[:, 0] + rng.randint(-2, 2) * ((rows[:, 0] - 2) // rng.randint(1, 5)),
    ]
    tensor = rng.choice(choices)().clone()
    flat = tensor.view(-1)
    for _ in range(rng.choice([0, 0, 1, 2])):
        flat[rng.randrange(len(flat))] = flat[rng.randrange(len(flat))]
    if dtype.is_floating_point and tensor.dtype is dtype and rng.random() < 0.05:
        flat[rng.randrange(len(flat))] = rng.choice([INF, float("nan"), -0.0])
    return tensor


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_a_closed_form_gives_every_element(seed: int) -> None:
    read(_any_tensor(random.Random(seed)))


@given(st.integers(0, 2**32))
@settings(max_examples=100)
def test_a_mask_is_proved_causal_exactly_if_it_is(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randint(1, 12)
    index = torch.arange(size)
    mask = (index[None] <= index[:, None]).clone()
    for _ in range(rng.randint(0, 2)):
        mask.view(-1)[rng.randrange(size * size)].logical_not_()
    expr = read(mask)
    assert expr is not None
    facts = Facts({}, {"q": build.const_int(size), "k": build.const_int(size)})
    proved = isinstance(Prover().valid(build.iff(expr, CAUSAL), facts), Proved)
    assert proved == torch.equal(mask, torch.ones(size, size, dtype=torch.bool).tril())


def test_a_choice_whose_negation_asks_for_itself() -> None:
    """A table written into at places that it marks itself: simplifying its negation came back to that negation."""

    class Model(torch.nn.Module):
        def mask(self) -> torch.Tensor:
            rows = ("1110", "1100", "1001", "1110", "0011")
            table = torch.tensor([[c == "1" for c in row] for row in rows])
            table[:1, 1:3] = True
            marked = table.t().clone()
            marked[table.t()] = True
            return marked.t()

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, y, y, attn_mask=self.mask())

    program = torch.export.export(Model(), (torch.randn(1, 3, 5, 4), torch.randn(1, 3, 4, 4)), strict=False)
    (site,) = attnlower.explain(program).sites
    assert site.verdict == "refuted"
    assert site.predicate is not None
    grid = {"b": 0, "h": 0, "q": torch.arange(5)[:, None], "k": torch.arange(4)[None]}
    assert torch.equal(evaluate(site.predicate.allowed, grid, {}).expand(5, 4), Model().mask())
