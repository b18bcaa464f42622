"""The project's speed against what a user would run instead; `make bench` writes docs/bench.md."""
