"""Settings and where they come from, paths, atomic files, progress, and a run's state: no torch, no pandas."""
