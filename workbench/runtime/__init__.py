"""Process-level services: seeds, distributed processes, signals, atomic files, hardware."""
