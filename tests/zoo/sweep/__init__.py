"""A sweep over every architecture that transformers' auto classes map; run as ``python -m sweep`` in tests/zoo.

``architectures`` lists them, ``configs`` shrinks their default configs by the names of the fields, ``models`` builds
them, ``inputs`` makes their arguments, ``scenarios`` compiles and exports them, ``truth`` records the masks that
attention really gets and holds the report against them, ``table`` writes COVERAGE.md.
"""
