"""The command line: from Hydra's configuration to a run. The only room that knows of Hydra and OmegaConf."""
