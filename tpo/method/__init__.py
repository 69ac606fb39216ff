"""The paper's arithmetic (2410.10630), in NumPy alone.

In: verdicts, scores and lengths as arrays. Out: ratings, pairs, quotas and estimates. Nothing here reads a file, knows
a record or imports another part of the project, so every rule can be tested against numbers worked out by hand.

`ratings` turns verdicts into Bradley-Terry ratings, `scoring` controls them for length, `pairing` picks the chosen and
the rejected response, `stats` puts an interval round a mean.

Beside it, of DPO-ST (2407.18248): `diversity` keeps solutions that differ, `arithmetic` has the value of an expression
and `calculator` the text and tokens that must follow it.
"""
