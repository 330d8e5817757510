"""The Lightning face: RefineModule, ILFModule, MBPPDataModule, UnitTestCallback."""
