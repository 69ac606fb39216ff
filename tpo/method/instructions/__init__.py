"""Verifiable instructions (IFEval, 2311.07911): their 25 types, and whether a response follows them.

A checker instead of a model: it needs no reference, and its verdicts are those of the official checker, with the
differences listed in docs/judges.md.
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
