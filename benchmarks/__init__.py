"""How fast the project is against what a user would run instead: `make bench` writes reports/bench.md."""
