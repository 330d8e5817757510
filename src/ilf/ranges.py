"""Ranges of numbers for the fields of settings and components. The package `ilf.components` checks them."""

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

Positive = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Mebibytes = Annotated[int, Ge(1), Le(10**9)]  # the system counts bytes in 64 bits
AboveZero = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
UnderHalf = Annotated[float, Ge(0), Lt(0.5)]
