"""Verifiable instructions (IFEval, 2311.07911): their 25 types, and whether a response follows them.

A checker in place of a model: it needs no reference, and its verdicts are those of the official checker as far as
docs/judges.md says.
"""

from tpo.method.instructions.checks import INSTRUCTION_TYPES
from tpo.method.instructions.constraints import (
    Accuracy,
    Constraint,
    ConstraintError,
    loose_verdicts,
    measure_accuracy,
    parse_constraints,
    strict_verdicts,
    write_constraints,
)

__all__ = [
    "INSTRUCTION_TYPES",
    "Accuracy",
    "Constraint",
    "ConstraintError",
    "loose_verdicts",
    "measure_accuracy",
    "parse_constraints",
    "strict_verdicts",
    "write_constraints",
]
