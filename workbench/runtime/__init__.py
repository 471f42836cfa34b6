"""Seeds, processes, signals, atomic files, hardware."""
