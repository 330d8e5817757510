"""The command line: from Hydra's configuration to a run. Only this package uses Hydra and OmegaConf."""

import sys

if sys.platform == "win32":  # checked before anything imports POSIX modules
    sys.exit("ILF executes programs under POSIX limits: run it under WSL, Linux or macOS.")
