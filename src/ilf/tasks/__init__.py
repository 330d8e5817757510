"""The data sets, which are the options of the group `data`, with their splits, prompts and prompt parsing."""

from ilf.tasks.data import Data, Limit
from ilf.tasks.hub import Hub
from ilf.tasks.humaneval import HumanEval
from ilf.tasks.jsonl import Jsonl
from ilf.tasks.mbpp import MBPP
from ilf.tasks.mini import Mini
from ilf.tasks.table import Table

__all__ = ["MBPP", "Data", "Hub", "HumanEval", "Jsonl", "Limit", "Mini", "Table"]
