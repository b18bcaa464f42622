"""Runs that begin with everything imported. Imports take seconds, and a sweep has many runs.

A sweep starts the `server`, which starts Snakemake, imports what notebooks need, and forks a run whenever Snakemake's
`fixres_poc run` asks for one and waits:

    sweep > server > Snakemake > `fixres_poc run`
            server > run, forked > its kernel, forked

A run is forked before any thread has started, and forks its kernel before it does anything else. It is interrupted when
the process that asked for it is, killed with it, and killed with the server; its kernel is killed with it. Where
anything is in the way (no Linux, a thread after the imports, an error in them), runs start cold, one by one.
"""
