"""Measurements of a running server, beside others where there are any: `make bench`, or `make bench BENCH="router memory"`.

Nothing here asserts a speed: figures are of one machine and one moment. docs/benchmarks.md says what each one means, and what
it does not show.
"""
