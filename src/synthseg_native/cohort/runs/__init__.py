"""One run of the workflow: an engine or the reference on one image, measured, recorded, published.

A run happens in a work folder beside its outputs. It always gives a run record (docs/results.md), also where it
failed; only a good one is published, by renaming.

- `native`, `reference`, `existing`: the three kinds of run, each from a scan and its settings to a run record
- `child`: a command that is run to its end and measured
- `failures`: what a run that went wrong says, in one line with a code
- `steps`: the workflow's step around a run: its command line, its ending, what it prints
- `work`: the work folder, who may publish from it, and the publishing
- `files`: what the files of a run are called
"""
