"""Running notebooks: one run, a whole sweep, its plan, its monitor, Snakemake and Slurm."""
