"""Countdown: make a target of given numbers with + - * /, every number exactly once (arXiv:2606.30445, section 5)."""

from understudy.tasks.countdown.expressions import Expression, read_expression
from understudy.tasks.countdown.formats import CompactFormat, ThinkFormat
from understudy.tasks.countdown.generator import Generator, Puzzle, Range
from understudy.tasks.countdown.grading import grade_compact, grade_countdown
from understudy.tasks.countdown.rows import Rows, make_rows, read_dataset, read_file, read_folder
from understudy.tasks.countdown.solver import is_solvable, solutions
from understudy.tasks.countdown.task import Countdown, compact_format
from understudy.tasks.countdown.traces import Trace, TraceSettings, make_trace

__all__ = [
    "CompactFormat",
    "Countdown",
    "Expression",
    "Generator",
    "Puzzle",
    "Range",
    "Rows",
    "ThinkFormat",
    "Trace",
    "TraceSettings",
    "compact_format",
    "grade_compact",
    "grade_countdown",
    "is_solvable",
    "make_rows",
    "make_trace",
    "read_dataset",
    "read_expression",
    "read_file",
    "read_folder",
    "solutions",
]
