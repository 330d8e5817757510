"""All settings of a run as a readable tree."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.syntax import Syntax
from rich.tree import Tree

from ilf.files import write_atomically


def show_tree(settings: Mapping[str, Any], folder: Path) -> None:
    """Print the settings with one branch per group, and write the same without colors to config_tree.txt.

    Args:
        settings: All settings of the run.
        folder: The run's folder.
    """
    tree = Tree("settings")
    for name, value in settings.items():
        branch, shown = (tree.add(name), value) if isinstance(value, dict) else (tree, {name: value})
        text = OmegaConf.to_yaml(shown).rstrip()
        branch.add(Syntax(text, "yaml", background_color="default", word_wrap=True))
    Console().print(tree)
    Console(file=(plain := io.StringIO()), width=120).print(tree)
    write_atomically(folder / "config_tree.txt", plain.getvalue())
