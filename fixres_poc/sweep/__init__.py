"""Running notebooks: one job, a whole sweep, its plan and its report, Snakemake and Slurm."""
