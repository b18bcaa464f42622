"""FixRes itself: stage 1, stage 2, the adaptations, and their baselines."""
