"""How fast the project is against what a user would run instead: `make bench` writes docs/bench.md."""
