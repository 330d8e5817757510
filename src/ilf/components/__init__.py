"""Components: the classes and functions that a configuration names by `_target_`, checked before any of them is called.

Users replace a component by naming another class. The arguments that are not in the configuration (a model's
parameters, a learning rate, the tasks of a run) are passed by the caller.

    component.py  a class or function by its name; keys for the store; plain values for a checkpoint
    read.py       from a node of the configuration to a component, or to an instance
    signature.py  checks of arguments against signatures
    value.py      checks of values against annotations
"""

from ilf.components.component import Component, Needs, from_node, key_of, node_of, resolve, version_of
from ilf.components.read import holds_components, read
from ilf.components.value import check_value

__all__ = [
    "Component",
    "Needs",
    "check_value",
    "from_node",
    "holds_components",
    "key_of",
    "node_of",
    "read",
    "resolve",
    "version_of",
]
