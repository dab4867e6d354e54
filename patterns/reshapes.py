"""The names of ops that keep a tensor's elements in row-major order and give them another shape."""

RESHAPES = frozenset(
    {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "view_copy", "_reshape_copy"}
)
"""`x.view(dtype)` goes by the same name and reads the bits anew: compare dtypes."""

EXPANSIONS = frozenset({"expand", "expand_as", "expand_copy"})
"""The names of ops that repeat an axis of size 1 without copying it."""
