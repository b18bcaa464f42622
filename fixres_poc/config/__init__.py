"""Settings and their sources, paths, atomic files, and a run's state: no torch, no pandas."""
