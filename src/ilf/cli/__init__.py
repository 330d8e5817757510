"""The command line: from Hydra's configuration to a run. The only room that knows of Hydra and OmegaConf."""

import sys

if sys.platform == "win32":  # before what imports POSIX modules
    sys.exit("ILF executes programs under POSIX limits: run it under WSL, Linux or macOS.")
