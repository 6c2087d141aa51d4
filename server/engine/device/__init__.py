"""The device that the engine runs on, and the defaults that follow from it."""
