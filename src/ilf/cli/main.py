"""The entry point of run.py, `ilf` and `python -m ilf`: compose the configuration, check it and run the command.

torch is only imported by the functions of `commands`, so that --help is fast.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ilf import distributed, shutdown
from ilf.cli.config import check_hydra, explain, register, settings_from
from ilf.cli.search_path import check_arm, record_sources
from ilf.installation import CONF


def command() -> None:
    """Run the command line, and exit with a status; after an error or a signal, with a short message."""
    # Hydra should raise errors instead of printing them, so that `shutdown.command` can explain them.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    os.environ.setdefault("HYDRA_MAIN_MODULE", "run")  # the default name of a job and of its log

    def program() -> None:
        register()
        arguments = get_args_parser().parse_args()
        given, overrides = arguments.config_path, arguments.overrides
        if given is not None and "://" not in given:  # Hydra would resolve it relative to this module
            sys.argv += ["--config-path", os.path.abspath(given)]
        if given is not None:  # a saved configuration has no section `hydra`, which names the callback
            place = sys.argv.index(overrides[0]) if overrides else len(sys.argv)  # overrides must be beside each other
            sys.argv.insert(place, "++hydra.callbacks.jobs._target_=ilf.cli.sweep.JobCallback")
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)()

    shutdown.command(lambda: distributed.lead(program), explain)


def job(config: DictConfig) -> float | None:
    """Check one job's configuration, and run the command that its `mode` names.

    Returns:
        The objective that a sweeper maximizes when it searches for settings: pass@1 on Refine.
    """
    shutdown.listen()  # a launcher's jobs do not go through `command`
    hydra_config: Any = HydraConfig.get()  # a DictConfig at run time
    overrides, sweep = list(hydra_config.overrides.task), hydra_config.mode is RunMode.MULTIRUN
    try:
        check_hydra(hydra_config)
        record_sources(hydra_config)
        settings = settings_from(config, overrides, sweep, hydra_config.runtime.choices)
        check_arm(hydra_config)
        if sweep:
            settings.group = settings.group or settings.study or "_".join(Path(hydra_config.sweep.dir).parts[-2:])
        from ilf.cli.commands import COMMANDS

        return COMMANDS[settings.mode](settings)
    except BaseException as error:
        if (stop := shutdown.pending()) is not None:
            if sweep:  # on a signal, Hydra exits without calling its callbacks
                from ilf.analysis.comparison import write_comparison

                folder = Path(hydra_config.sweep.dir)
                write_comparison(folder, [folder], config.compare.pairs)
            raise stop from error
        # A sweep needs an exception to count the job as failed and continue. A single run needs no traceback.
        if sweep or not isinstance(error, Exception) or (said := explain(error)) is None:
            raise
        sys.exit(f"error: {said}")
