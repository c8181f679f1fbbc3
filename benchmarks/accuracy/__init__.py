"""How many bugs each tool reports, and on how many right programs: `python -m benchmarks.accuracy`.

A program counts as reported if its test fails with the tool and passes without it.
"""
