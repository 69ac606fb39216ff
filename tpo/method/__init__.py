"""The paper's arithmetic (2410.10630), in pure NumPy.

Nothing here reads a file, uses a record or imports another part of the project, so every rule can be tested against
numbers computed by hand.

`ratings` turns verdicts into Bradley-Terry ratings, `scoring` controls them for length, `pairing` picks the chosen and
the rejected response, `stats` puts an interval around a mean.

From DPO-ST (2407.18248): `diversity` keeps solutions that differ, `arithmetic` computes the value of an expression, and
`calculator` the text and tokens that must follow it.
"""
