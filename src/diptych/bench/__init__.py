"""How fast a model is on this machine: sides that take turns, each measurement in a process of its own."""
