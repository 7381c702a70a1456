# The way in from this folder. The workflow itself, and what it does: workflow/Snakefile.


include: "workflow/Snakefile"


workflow.default_target = "all"  # an include leaves none
